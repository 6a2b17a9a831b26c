"""The effects of importing the client on its user's process."""

import json
import subprocess
import sys

# Every attribute of every module of these libraries, of its classes and of its loggers.
SNAPSHOT = """
import importlib, json, logging, pkgutil, sys

LIBRARIES = ("aio_pika", "aiormq", "pamqp")


def snapshot():
    state = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in LIBRARIES:
            continue
        for attribute, value in vars(module).items():
            state[f"{name}.{attribute}"] = value if attribute == "__builtins__" else id(value)
            if isinstance(value, type) and value.__module__.partition(".")[0] in LIBRARIES:
                for inner, its in vars(value).items():
                    # what abc keeps of classes that have been asked about is no attribute of theirs
                    if not inner.startswith("_abc"):
                        state[f"{name}.{attribute}.{inner}"] = id(its)
            if isinstance(value, logging.Logger):
                state[f"{name}.{attribute}:logger"] = (value.level, value.handlers[:], value.filters[:])
    return state


for library in LIBRARIES:
    package = importlib.import_module(library)
    for module in pkgutil.walk_packages(package.__path__, library + "."):
        if module.name.replace(".", "_").isidentifier():  # no hook for PyInstaller
            importlib.import_module(module.name)
modules, before = set(sys.modules), snapshot()
import worker.client
import worker.client.sync
after = snapshot()
print(json.dumps([len(before), [name for name in before | after if before.get(name) != after.get(name)]]))
"""


def printed_by(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_import_changes_no_attribute_of_a_library() -> None:
    attributes, changed = json.loads(printed_by(SNAPSHOT))
    assert attributes > 1000
    assert changed == []


def test_import_brings_nothing_of_the_worker_but_what_a_producer_needs() -> None:
    program = "import sys, worker.client, worker.client.sync; print(*sys.modules)"
    modules = {name.partition(".")[0] for name in printed_by(program).split()}
    assert modules.isdisjoint(
        {
            "aiohttp",
            "aiosqlite",
            "alembic",
            "asyncpg",
            "opentelemetry",
            "pendulum",
            "prometheus_client",
            "pydantic_settings",
            "rich",
            "sqlalchemy",
            "structlog",
            "typer",
            "uvloop",
        }
    )


def test_import_brings_no_module_of_the_broker_but_how_to_connect() -> None:
    program = "import sys, worker.client, worker.client.sync; print(*sys.modules)"
    rooms = ("worker.amqp.", "worker.broker.")
    ours = {name for name in printed_by(program).split() if name.startswith(rooms)}
    assert ours == {"worker.amqp.frames", "worker.amqp.watch", "worker.broker.connection"}
