"""``amqps://``: the certificates that worker, client and commands accept, the brokers that accept
theirs, and that no password is shown.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from yarl import URL

from tests.conftest import StartWorker
from tests.support.certificates import Authority
from tests.support.command import command
from tests.support.rabbitmq import TLS, RabbitMQ
from worker.client import BrokerGone, FlowRunClient

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
PASSWORD = "hunter2-of-the-broker"


class Trust:
    """Two authorities, one of which has issued the broker's certificate, and two nodes, one of
    which demands a client certificate.

    Each URL has a user whose password must be shown nowhere.
    """

    def __init__(self, folder: Path) -> None:
        self.authority, self.other = Authority(folder, "authority"), Authority(folder, "other")
        server = self.authority.issue("server", host="localhost")
        self.client, self.stranger = self.authority.issue("client"), self.other.issue("stranger")
        files = (self.authority.certificate, server.certificate, server.key)
        self.open = RabbitMQ(tls=TLS(*files))
        self.closed = RabbitMQ(tls=TLS(*files, client_certificate=True))

    def url(self, node: RabbitMQ, *, host: str = "localhost", **files: Path) -> str:
        url = URL(node.tls_url).with_host(host).with_user("somebody").with_password(PASSWORD)
        return str(url.with_query({name: str(path) for name, path in files.items()}))

    def trusted(self, node: RabbitMQ) -> str:
        """A URL with a client certificate that either node accepts."""
        return self.url(
            node, cafile=self.authority.certificate, certfile=self.client.certificate, keyfile=self.client.key
        )

    def untrusted(self) -> dict[str, tuple[str, str]]:
        """For each fault: a URL, and the expected text."""
        cafile = self.authority.certificate
        return {
            "an unknown authority": (self.url(self.open), "certificate verify failed"),
            "another authority": (
                self.url(self.open, cafile=self.other.certificate),
                "certificate verify failed",
            ),
            "another host name": (
                self.url(self.open, cafile=cafile, host="127.0.0.1"),
                "IP address mismatch",
            ),
            "a missing file": (
                self.url(self.open, cafile=Path("/none/ca.pem")),
                "'/none/ca.pem', which is the cafile",
            ),
            "a file that is no certificate": (self.url(self.open, cafile=self.client.key), "no certificate"),
            "a key of another certificate": (
                self.url(
                    self.open, cafile=cafile, certfile=self.client.certificate, keyfile=self.stranger.key
                ),
                "key values mismatch",
            ),
            "a listener without TLS": (
                str(URL(self.url(self.open, cafile=cafile)).with_port(self.open.port)),
                "wrong version number",
            ),
            "no client certificate": (self.url(self.closed, cafile=cafile), "certificate required"),
            "a stranger's client certificate": (
                self.url(
                    self.closed, cafile=cafile, certfile=self.stranger.certificate, keyfile=self.stranger.key
                ),
                "unknown ca",
            ),
        }


UNTRUSTED = (
    "an unknown authority",
    "another authority",
    "another host name",
    "a missing file",
    "a file that is no certificate",
    "a key of another certificate",
    "a listener without TLS",
    "no client certificate",
    "a stranger's client certificate",
)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trust]:
    trust = Trust(tmp_path_factory.mktemp("certificates"))
    with trust.open, trust.closed:
        for node in (trust.open, trust.closed):
            node.ctl("add_user", "somebody", PASSWORD)
            node.ctl("set_permissions", "somebody", ".*", ".*", ".*")
        yield trust


@pytest.fixture(params=["no client certificate wanted", "client certificate wanted"])
def served_url(request: pytest.FixtureRequest, trust: Trust) -> str:
    if request.param == "client certificate wanted":
        return trust.trusted(trust.closed)
    return trust.url(trust.open, cafile=trust.authority.certificate)


async def test_worker_client_and_commands_get_on_with_a_broker_that_they_trust(
    served_url: str, queue: str, sqlite_url: str, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_url, amqp_url=served_url, log_level="debug")
    async with FlowRunClient(served_url, queue=queue) as client:
        assert (await client.create_flow_run(flow_id=FLOW_ID, name="by the client")).name == "by the client"
    settings = {"amqp_url": served_url, "queue": queue, "database_url": sqlite_url}
    done = await command("create", "--flow-id", FLOW_ID, **settings)
    assert (done.code, done.err.split()[:1]) == (0, ["201"])
    examined = await command("doctor", **settings)
    assert examined.code == 0, examined.out
    shown = await command("run", "--help", **settings)
    assert worker.terminate() == 0
    for said in (worker.output, done.out, done.err, examined.out, examined.err, shown.out, shown.err):
        assert PASSWORD not in said
    assert "somebody:***@localhost" in worker.output


@pytest.mark.parametrize("wrong", UNTRUSTED)
async def test_a_worker_without_trust_says_why_and_ends(
    trust: Trust, wrong: str, sqlite_url: str, start_worker: StartWorker
) -> None:
    url, said = trust.untrusted()[wrong]
    worker = start_worker(sqlite_url, amqp_url=url, log_level="debug", wait=False)
    assert worker.process.wait(180) == 1, worker.output
    (line,) = (line for line in worker.output.splitlines() if "cannot_start" in line)
    assert said in line
    assert "Traceback" not in worker.output
    assert PASSWORD not in worker.output


@pytest.mark.parametrize("wrong", UNTRUSTED)
async def test_client_and_commands_without_trust_say_why(
    trust: Trust, wrong: str, queue: str, sqlite_url: str
) -> None:
    url, said = trust.untrusted()[wrong]
    async with FlowRunClient(url, queue=queue, timeout=20) as client:
        with pytest.raises(BrokerGone) as raised:
            await client.create_flow_run(flow_id=FLOW_ID)
    created, examined = await asyncio.gather(
        command("create", "--flow-id", FLOW_ID, amqp_url=url, queue=queue),
        command("doctor", amqp_url=url, queue=queue, database_url=sqlite_url),
    )
    assert (created.code, examined.code) == (1, 1)
    for line in (str(raised.value), created.err, examined.out):
        # A connection reset may arrive before the broker's text about our certificate.
        assert said in line or (
            "client certificate" in wrong and "perhaps it wants another client certificate" in line
        )
        assert PASSWORD not in line
    assert "cafile, certfile and keyfile" in examined.out
    assert PASSWORD not in created.out + examined.err


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
@pytest.mark.parametrize(
    "arguments",
    [("run",), ("create", "--flow-id", FLOW_ID), ("doctor",), ("run", "--help"), ("create", "--help")],
)
async def test_no_password_is_shown_when_the_login_is_refused(
    trust: Trust, scheme: str, arguments: tuple[str, ...], sqlite_url: str, queue: str
) -> None:
    url = URL(trust.url(trust.open, cafile=trust.authority.certificate)).with_user("nobody")
    if scheme == "amqp":
        url = url.with_scheme("amqp").with_port(trust.open.port)
    database = (
        "postgresql://somebody:hunter2-of-the-database@127.0.0.1:1/x"
        if arguments == ("doctor",)
        else sqlite_url
    )
    done = await command(
        *arguments,
        amqp_url=url,
        queue=queue,
        database_url=database,
        log_level="debug",
        log_format="json",
        http_port=0,
    )
    assert done.code == (0 if "--help" in arguments else 1), done.err
    if "--help" not in arguments:
        assert "refuses the login" in done.out + done.err
    assert "hunter2" not in done.out + done.err


def test_the_table_of_what_is_wrong_is_complete(trust: Trust) -> None:
    assert tuple(trust.untrusted()) == UNTRUSTED
