"""The findings of ``doctor`` on servers with and without faults; and a worker with only the rights
that it needs.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from yarl import URL

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.database import fetch
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.broker.session import Session
from worker.broker.topology import Topology

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


async def examine(**settings: object) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and for each item its verdict and text."""
    done = await command("doctor", "--json", **settings)
    findings = json.loads(done.out)
    return done.code, {
        each["what"]: (each["verdict"], f"{each['detail']} {each['advice']}") for each in findings
    }


async def declare(url: str, queue: str) -> None:
    assert (await command("topology", "declare", amqp_url=url, queue=queue)).code == 0


@pytest.fixture
def worker_user(rabbitmq: RabbitMQ, queue: str) -> Iterator[str]:
    """The URL of a user with the rights in the README, and no others."""
    name = f"user-{queue}"
    rabbitmq.ctl("add_user", name, "secret")
    rabbitmq.ctl("set_permissions", name, "^$", r"^amq\.default$", f"^{re.escape(queue)}$")
    yield str(URL(rabbitmq.url).with_user(name).with_password("secret"))
    rabbitmq.ctl("delete_user", name)


async def test_all_is_well(amqp_url: str, queue: str, postgresql_url: str) -> None:
    await declare(amqp_url, queue)
    await command("db", "upgrade", database_url=postgresql_url)
    code, found = await examine(amqp_url=amqp_url, queue=queue, database_url=postgresql_url)
    assert {verdict for verdict, _ in found.values()} == {"ok", "not checked"}
    assert code == 0
    assert "RabbitMQ" in found["broker"][1]
    assert "the worker's own" in found["schema"][1]
    for_people = await command("doctor", amqp_url=amqp_url, queue=queue, database_url=postgresql_url)
    assert for_people.code == 0
    assert all(what in for_people.out for what in found)


async def test_nothing_answers() -> None:
    code, found = await examine(
        amqp_url="amqp://127.0.0.1:1", database_url="postgresql+asyncpg://u@127.0.0.1:1/d", prefetchh=1
    )
    assert code == 1
    assert found["settings"] == (
        "warning",
        "WORKER_PREFETCHH is no setting, and does nothing Did you mean WORKER_PREFETCH?",
    )
    assert found["broker"][0] == found["database"][0] == "problem"
    assert "WORKER_AMQP_URL" in found["broker"][1]
    assert "WORKER_DATABASE_URL" in found["database"][1]


async def test_nothing_stands_yet_and_nothing_is_made(
    amqp_url: str, queue: str, tmp_path: Path, postgresql_url: str
) -> None:
    file = tmp_path / "new.db"
    code, found = await examine(amqp_url=amqp_url, queue=queue, database_url=f"sqlite:///{file}")
    assert code == 0
    assert found[f"queue {queue}"][0] == "warning"
    assert "will be made" in found["database file"][1]
    assert not file.exists()
    code, found = await examine(amqp_url=amqp_url, queue=queue, database_url=postgresql_url)
    assert code == 1
    assert found["schema"][0] == "problem"
    assert "db upgrade" in found["schema"][1]
    assert await fetch(postgresql_url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []
    # The queue was not declared either: a worker of another version may still declare it.
    _, found = await examine(amqp_url=amqp_url, queue=queue, database_url=postgresql_url)
    assert "does not stand" in found[f"queue {queue}"][1]


async def test_what_stands_otherwise_is_told(
    amqp_url: str, queue: str, sqlite_url: str, producer: Producer
) -> None:
    await producer.channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "classic"})
    code, found = await examine(amqp_url=amqp_url, queue=queue, database_url=sqlite_url)
    assert code == 1
    assert found[f"queue {queue}"][0] == "problem"
    assert "inequivalent arg" in found[f"queue {queue}"][1]
    assert "does not stand" in found[f"queue {queue}.dead"][1]


async def test_a_folder_that_is_missing_is_told(amqp_url: str, queue: str, tmp_path: Path) -> None:
    code, found = await examine(
        amqp_url=amqp_url, queue=queue, database_url=f"sqlite:///{tmp_path}/none/x.db"
    )
    assert code == 1
    assert "does not exist" in found["database file"][1]


async def test_dead_letters_are_told(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    start_worker(sqlite_url)
    assert (await producer.request(b"{}")).status == 422
    code, found = await examine(amqp_url=amqp_url, queue=producer.queue, database_url=sqlite_url)
    assert code == 0
    verdict, said = found[f"queue {producer.queue}.dead"]
    assert verdict == "warning"
    assert "dead-letters list" in said


async def test_missing_rights_are_told(
    rabbitmq: RabbitMQ,
    queue: str,
    worker_user: str,
    postgresql_url: str,
    amqp_url: str,
) -> None:
    await declare(amqp_url, queue)
    await command("db", "upgrade", database_url=postgresql_url)
    role = f"reader_{queue[5:13]}"
    await fetch(postgresql_url, f"CREATE ROLE {role} LOGIN")
    await fetch(postgresql_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    reader = postgresql_url.replace("postgres@", f"{role}@")
    rabbitmq.ctl("set_permissions", URL(worker_user).user or "", "^$", "^$", "^$")
    code, found = await examine(amqp_url=worker_user, queue=queue, database_url=reader)
    assert code == 1
    assert found["read permission"][0] == "problem"
    assert "amq.default" in found["write permission"][1]
    assert f'GRANT INSERT ON flow_run_state TO "{role}"' in found["privileges"][1]


async def test_a_worker_needs_the_named_rights_and_no_more(
    amqp_url: str,
    queue: str,
    worker_user: str,
    postgresql_url: str,
    start_worker: StartWorker,
    producer: Producer,
) -> None:
    """Others make topology and schema. The worker may consume, publish, read and insert."""
    await declare(amqp_url, queue)
    await command("db", "upgrade", database_url=postgresql_url)
    role = f"worker_{queue[5:13]}"
    await fetch(postgresql_url, f"CREATE ROLE {role} LOGIN")
    await fetch(postgresql_url, f"GRANT SELECT, INSERT ON flow_run, flow_run_state TO {role}")
    await fetch(postgresql_url, f"GRANT SELECT ON flow_run_worker_version TO {role}")
    limited = postgresql_url.replace("postgres@", f"{role}@")
    code, found = await examine(amqp_url=worker_user, queue=queue, database_url=limited)
    assert code == 0, found
    worker = start_worker(limited, amqp_url=worker_user, migrate=False)
    assert (await producer.request({"flow_id": FLOW_ID, "idempotency_key": "k"})).status == 201
    assert (await producer.request({"flow_id": FLOW_ID, "idempotency_key": "k"})).status == 200
    assert (await producer.request({"flow_id": 1})).status == 422
    assert len(await producer.dead_letters(1)) == 1
    assert worker.terminate() == 0


async def test_a_worker_with_too_few_rights_says_which_and_ends(
    rabbitmq: RabbitMQ,
    amqp_url: str,
    queue: str,
    worker_user: str,
    sqlite_url: str,
    start_worker: StartWorker,
) -> None:
    worker = start_worker(sqlite_url, amqp_url=worker_user, wait=False)
    assert worker.process.wait(180) == 1
    assert "topology declare" in worker.output
    session = await Session.open(amqp_url, Topology(queue), name="test")
    await session.close()
    rabbitmq.ctl("set_permissions", URL(worker_user).user or "", "^$", "^$", "^$")
    worker = start_worker(sqlite_url, amqp_url=worker_user, wait=False)
    assert worker.process.wait(180) == 1
    assert f"access to queue '{queue}'" in worker.output


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/no-such-vhost", "vhost no-such-vhost not found"), ("/%2F", "access to vhost '/' refused for user")],
)
async def test_a_virtual_host_that_is_refused_is_told_and_ends_the_worker(
    start_worker: StartWorker, rabbitmq: RabbitMQ, queue: str, sqlite_url: str, path: str, reason: str
) -> None:
    """It does not exist, or the user has no permission on it."""
    name = f"nobody-{queue}"
    rabbitmq.ctl("add_user", name, "secret")
    user = "guest:guest" if path == "/no-such-vhost" else f"{name}:secret"
    url = f"amqp://{user}@127.0.0.1:{rabbitmq.port}{path}"
    code, found = await examine(amqp_url=url, queue=queue, database_url=sqlite_url)
    assert code == 1
    assert f"refuses the connection: NOT_ALLOWED - {reason}" in found["broker"][1]
    worker = start_worker(sqlite_url, amqp_url=url, wait=False)
    assert worker.process.wait(180) == 1
    assert reason in worker.output
    assert "Traceback" not in worker.output
    rabbitmq.ctl("delete_user", name)
