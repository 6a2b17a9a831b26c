"""The command line without a server: its help, its usage errors, and its imports."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker import __version__
from worker.cli import CHANNEL_LOST, FAILURES, REFUSED, WRONG_USAGE, app
from worker.cli.run import GROUPS
from worker.settings import Settings


def shown(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_version_is_told() -> None:
    assert shown("--version") == f"flow-run-worker {__version__}\n"


def test_help_of_run_has_each_setting_with_its_default() -> None:
    text = " ".join(shown("run", "--help").split())
    for name, field in Settings.model_fields.items():
        option = name.replace("_", "-")
        assert f"--{option}" in text
        assert f"[WORKER_{name.upper()}]" in text
        if field.default is not None and not isinstance(field.default, (bool, float)):
            assert f"[WORKER_{name.upper()}] [default: {field.default}]" in text, name
    assert "--migrate / --no-migrate" in text
    assert "[WORKER_MIGRATE] [default: false]" in text
    assert "[WORKER_SHUTDOWN_TIMEOUT] [default: 30]" in text


def test_each_setting_is_in_a_group_of_the_help_of_run() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(Settings.model_fields)


@pytest.mark.parametrize(
    "command", [("create",), ("states",), ("db", "prune"), ("dead-letters", "purge"), ("top",)]
)
def test_flags_have_no_type_and_each_option_has_its_meaning(command: tuple[str, ...]) -> None:
    lines = [line for line in shown(*command, "--help").splitlines() if "--" in line and "--help" not in line]
    assert not [line for line in lines if "<bool>" in line]
    assert not [line for line in lines if re.fullmatch(r"│ .*<[a-z\[\]]+> *│", line)]


@pytest.mark.parametrize("url", ["nonsense", "worker:8080"])
def test_top_names_a_url_that_is_none(url: str) -> None:
    done = CliRunner().invoke(app, ["top", "--once", url], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert f"'{url}' is no URL such as http://" in done.output


def test_help_fits_eighty_columns() -> None:
    for command in ((), ("run",), ("states",), ("db", "prune"), ("dead-letters", "replay"), ("top",)):
        assert max(map(len, shown(*command, "--help").splitlines())) <= 80


def test_help_loads_none_of_the_large_libraries() -> None:
    """Importing them takes most of a second."""
    code = (
        "import sys; from worker.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "worker.cli.run" in loaded
    assert loaded.isdisjoint(
        {"sqlalchemy", "alembic", "aio_pika", "aiohttp", "pydantic", "prometheus_client"}
    )


@pytest.mark.parametrize(
    ("code", "not_needed"),
    [
        ("from worker.settings import load_settings; load_settings()", "sqlalchemy"),
        ("import worker.service", "alembic"),
    ],
)
def test_what_is_not_needed_is_not_loaded(code: str, not_needed: str, tmp_path: Path) -> None:
    """By commands without a database, and by a worker that finds the schema up to date."""
    code = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "worker.settings" in done.stdout.split()
    assert not_needed not in done.stdout.split()


@pytest.mark.parametrize("name", sorted([*FAILURES, *WRONG_USAGE, REFUSED, CHANNEL_LOST]))
def test_what_a_user_can_mend_is_known_by_its_name(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert getattr(import_module(module), kind).__module__ == module


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("run --prefetchh 1", "No such option"),
        ("run surplus", "unexpected extra argument"),
        ("db prune", "Missing option '--older-than'"),
        ("db prune --older-than 90", "not an age"),
        ("db prune --older-than -1d", "not an age"),
        ("db prune --older-than 59m", "at least 1h"),
        ("db prune --older-than 99999w", "before 1970"),
        ("db prune --older-than 90d --state done", "'done' is none of cancelled"),
        ("db prune --older-than 90d --batch 0", "Invalid value for '--batch'"),
        ("db prune --older-than 90d --pause -1", "Invalid value for '--pause'"),
        ("dead-letters replay", "name ids, a filter such as --cause or --status, or --all"),
    ],
)
def test_wrong_usage_is_refused_with_2(arguments: str, told: str) -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments.split())
    assert done.exit_code == 2
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    assert told in plain
