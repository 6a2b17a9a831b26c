"""Password files that change, as in Kubernetes: each connect reads the current password, and a
missing or wrong one is waited out.
"""

import asyncio
import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from yarl import URL

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.database import execute, fetch_runs
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from worker.client import FlowRunClient
from worker.store import migrations
from worker.urls.password_file import with_password_file

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


class Secret:
    """A secret as Kubernetes mounts it: the file is a link into a folder, which is itself a link
    that is switched.
    """

    def __init__(self, folder: Path, password: str) -> None:
        self._folder = folder
        folder.mkdir()
        self._count = 0
        self.path = folder / "password"
        self.path.symlink_to(Path("..data") / "password")
        self.rotate(password)

    def rotate(self, password: str) -> None:
        self._count += 1
        version = self._folder / f"..{self._count}"
        version.mkdir()
        (version / "password").write_text(f"{password}\n")
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        os.rename(link, self._folder / "..data")

    def remove(self) -> None:
        (self._folder / "..data").unlink()


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQL]:
    """A cluster that asks for passwords."""
    with PostgreSQL() as cluster:
        yield cluster


@pytest.fixture
async def login(cluster: PostgreSQL, queue: str) -> str:
    """The URL of a role that logs in by a password, in a database with our tables."""
    url = cluster.create_database()
    await migrations.upgrade(url)
    role = queue.partition(".")[0].replace("-", "_")
    await execute(
        url,
        f"CREATE ROLE {role} LOGIN PASSWORD 'first'",
        f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {role}",
    )
    lines = "local all all trust\nhost all postgres all trust\nhost all all all scram-sha-256\n"
    (cluster._data / "pg_hba.conf").write_text(lines)
    await execute(url, "SELECT pg_reload_conf()")
    return make_url(url).set(username=role, password="old").render_as_string(hide_password=False)


@pytest.fixture
def user(rabbitmq: RabbitMQ, queue: str) -> Iterator[str]:
    name = queue.partition(".")[0]
    rabbitmq.ctl("add_user", name, "first")
    rabbitmq.ctl("set_permissions", name, ".*", ".*", ".*")
    yield name
    rabbitmq.ctl("delete_user", name)


async def test_a_worker_connects_anew_by_the_password_of_now(
    start_worker: StartWorker,
    producer: Producer,
    rabbitmq: RabbitMQ,
    user: str,
    login: str,
    cluster: PostgreSQL,
    tmp_path: Path,
) -> None:
    admin = make_url(login).set(username="postgres", password=None).render_as_string()
    role = make_url(login).username
    broker, database = Secret(tmp_path / "broker", "first"), Secret(tmp_path / "database", "first")
    worker = await asyncio.to_thread(
        start_worker,
        login,
        amqp_url=str(URL(rabbitmq.url).with_user(user).with_password("old")),
        amqp_password_file=broker.path,
        database_password_file=database.path,
        migrate=False,
    )
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201

    async def lose_connections() -> None:
        # The broker's last: a worker without a session looks at its database before the next one.
        await execute(
            admin, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        )
        rabbitmq.ctl("close_all_user_connections", user, "to see whether it comes back")

    # Both files are renewed before the connections are lost, then after that, then are missing.
    for number, way in enumerate(("before", "after", "missing")):
        password, sessions = f"{way} {number}", worker.output.count("serving")
        if way == "before":
            broker.rotate(password)
            database.rotate(password)
        elif way == "missing":
            broker.remove()
            database.remove()
        rabbitmq.ctl("change_password", user, password)
        await execute(admin, f"ALTER ROLE {role} PASSWORD '{password}'")
        await lose_connections()
        request = asyncio.create_task(producer.request({"flow_id": FLOW_ID}))
        if way != "before":
            wrong = way == "after"
            for secret, told in (
                (database, "password authentication failed" if wrong else f"'{database.path}' can't be read"),
                (broker, "refuses the login" if wrong else f"'{broker.path}' can't be read"),
            ):
                await asyncio.to_thread(worker.wait_until_logged, told)
                assert not request.done()
                assert worker.process.poll() is None
                secret.rotate(password)
        assert (await asyncio.wait_for(request, 120)).status == 201
        assert worker.output.count("serving") > sessions
    assert len(await fetch_runs(admin)) == 4
    assert await asyncio.to_thread(worker.terminate) == 0
    for secret in ("before 0", "after 1", "missing 2"):
        assert secret not in worker.output


async def test_a_start_waits_for_the_files(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, user: str, login: str, tmp_path: Path
) -> None:
    """As when another container writes them."""
    broker, database = tmp_path / "broker", tmp_path / "database"
    worker = await asyncio.to_thread(
        start_worker,
        login,
        amqp_url=str(URL(rabbitmq.url).with_user(user).with_password("old")),
        amqp_password_file=broker,
        database_password_file=database,
        migrate=False,
        wait=False,
    )
    await asyncio.to_thread(worker.wait_until_logged, f"The password file '{database}' can't be read")
    assert worker.readiness()[0] == 503
    database.write_text("first")
    await asyncio.to_thread(worker.wait_until_logged, f"The password file '{broker}' can't be read")
    assert str(broker) in worker.readiness()[1]["broker"]
    broker.write_text("first")
    await asyncio.to_thread(worker.wait_until_logged, "serving")
    assert (await producer.request({"flow_id": FLOW_ID})).status == 201


async def test_every_command_reads_the_files(
    rabbitmq: RabbitMQ, user: str, login: str, queue: str, tmp_path: Path
) -> None:
    broker, database = tmp_path / "broker", tmp_path / "database"
    settings = {
        "amqp_url": str(URL(rabbitmq.url).with_user(user).with_password("old")),
        "database_url": login,
        "amqp_password_file": broker,
        "database_password_file": database,
        "queue": queue,
    }
    commands = (
        ("topology", "declare"),
        ("create", "--flow-id", FLOW_ID, "--no-reply"),
        ("dead-letters", "list"),
        ("db", "current"),
        ("db", "upgrade"),
        ("db", "prune", "--older-than", "1d"),
        ("doctor",),
    )
    for arguments in commands[:-1]:
        done = await command(*arguments, **settings)
        assert done.code == 1, (arguments, done)
        assert "can't be read" in done.err, (arguments, done)
        assert "Traceback" not in done.err, (arguments, done)
    done = await command("doctor", **settings)
    assert str(broker) in done.out, done
    assert str(database) in done.out, done
    broker.write_text("first\n")
    database.write_text("first\n")
    for arguments in commands:
        done = await command(*arguments, **settings)
        assert done.code == 0 or arguments == ("doctor",), (arguments, done)
        assert "can't be read" not in done.out + done.err, (arguments, done)


async def test_a_client_reads_the_file_that_its_url_names(
    start_worker: StartWorker, sqlite_url: str, rabbitmq: RabbitMQ, user: str, queue: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(start_worker, sqlite_url)
    secret = Secret(tmp_path / "secret", "first")
    url = with_password_file(str(URL(rabbitmq.url).with_user(user)), str(secret.path))
    async with FlowRunClient(url, queue=queue, timeout=60) as client:
        await client.create_flow_run(FLOW_ID)
        rabbitmq.ctl("change_password", user, "second")
        secret.rotate("second")
        rabbitmq.ctl("close_all_user_connections", user, "to see whether it comes back")
        await client.create_flow_run(FLOW_ID)


class Tokens:
    """Signs OAuth 2 tokens as RabbitMQ accepts them (RFC 7519, RS256)."""

    def __init__(self, folder: Path) -> None:
        self._key, self.public = folder / "token.key", folder / "token.pem"
        self._openssl("genpkey", "-algorithm", "RSA", "-out", str(self._key))
        self._openssl("pkey", "-in", str(self._key), "-pubout", "-out", str(self.public))

    def issue(self, seconds: float) -> str:
        """A token with all rights for this many seconds."""
        rights = [f"rabbitmq.{right}:*/*" for right in ("configure", "read", "write")]
        claims = {"aud": ["rabbitmq"], "scope": rights, "exp": int(time.time() + seconds)}
        parts = ({"alg": "RS256", "typ": "JWT", "kid": "ours"}, claims)
        signed = b".".join(_encoded(json.dumps(part).encode()) for part in parts)
        signature = self._openssl("dgst", "-sha256", "-sign", str(self._key), stdin=signed)
        return (signed + b"." + _encoded(signature)).decode()

    def _openssl(self, *arguments: str, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            ["openssl", *arguments], input=stdin, capture_output=True, check=True, timeout=300
        )
        return done.stdout


def _encoded(part: bytes) -> bytes:
    return base64.urlsafe_b64encode(part).rstrip(b"=")


async def test_a_token_that_expires_is_followed_by_the_one_in_the_file(
    start_worker: StartWorker, sqlite_url: str, queue: str, tmp_path: Path
) -> None:
    """The broker refuses an expired token, and the worker waits for another."""
    tokens = Tokens(tmp_path)
    node = RabbitMQ(
        plugins=["rabbitmq_auth_backend_oauth2"],
        settings={
            "auth_backends.1": "rabbit_auth_backend_oauth2",
            "auth_backends.2": "internal",
            "auth_oauth2.resource_server_id": "rabbitmq",
            "auth_oauth2.default_key": "ours",
            "auth_oauth2.signing_keys.ours": str(tokens.public),
        },
    )
    with node:
        secret = Secret(tmp_path / "secret", tokens.issue(3600))
        worker = await asyncio.to_thread(
            start_worker,
            sqlite_url,
            amqp_url=str(URL(node.url).with_user("anybody").with_password("expired")),
            amqp_password_file=secret.path,
        )
        secret.rotate(tokens.issue(-60))
        async with Producer(node.url, queue) as producer:
            # RabbitMQ 3.10 leaves the connection open.
            for name in node.ctl("list_connections", "pid", "user").splitlines():
                if name.endswith("anybody"):
                    node.ctl("close_connection", name.split()[0], "its token has expired")
            await asyncio.to_thread(worker.wait_until_logged, "refuses the login")
            request = asyncio.create_task(producer.request({"flow_id": FLOW_ID}))
            assert worker.readiness()[0] == 503
            assert worker.process.poll() is None
            secret.rotate(tokens.issue(3600))
            assert (await request).status == 201
