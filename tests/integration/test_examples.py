"""The examples for producers in other languages work, if their runtime is on the machine."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartWorker
from tests.support.database import fetch_runs
from tests.support.node import NodeProducer
from tests.support.published_states import Teller
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.mark.skipif(not shutil.which("npm"), reason="no Node.js here")
async def test_node_producer_prints_the_record(
    start_worker: StartWorker, sqlite_url: str, amqp_url: str, queue: str, tmp_path: Path
) -> None:
    node = NodeProducer(tmp_path, amqp_url, queue)
    start_worker(sqlite_url)
    created, existing, refused, no_deployment = [
        await asyncio.to_thread(node.create, *arguments)
        for arguments in ([FLOW_ID, "k"], [FLOW_ID, "k"], ["no-uuid"], ["flow/deployment"])
    ]
    assert created.returncode == 0, created.stderr
    status, _, record = created.stdout.partition("\n")
    assert status == "201 flow_run"
    (run,) = await fetch_runs(sqlite_url)
    assert json.loads(record)["id"] == run["id"]
    assert existing.stdout.startswith("200 flow_run")
    assert refused.returncode == 1
    assert refused.stdout.startswith("422 error")
    assert no_deployment.stdout.startswith("404 error")


@pytest.mark.skipif(not shutil.which("npm"), reason="no Node.js here")
async def test_node_producer_waits_for_the_end(amqp_url: str, queue: str, tmp_path: Path) -> None:
    node = await asyncio.to_thread(NodeProducer, tmp_path, amqp_url, queue)
    async with Teller(amqp_url, queue) as teller:
        waiting = asyncio.create_task(asyncio.to_thread(node.create, "--wait", FLOW_ID))
        while not teller.reads:
            await asyncio.sleep(0.05)
        (run_id,) = teller.runs
        await teller.tell(run_id, "RUNNING")
        await teller.tell(run_id, "COMPLETED")
        done = await waiting
    assert (done.returncode, done.stderr) == (0, "Running\nCompleted\n")
    status, _, record = done.stdout.partition("\n")
    assert status == "201 flow_run"
    assert (json.loads(record)["id"], json.loads(record)["state_type"]) == (str(run_id), "COMPLETED")


JAVA_CLIENT = ("librabbitmq-client-java", "libslf4j-java")


@pytest.mark.skipif(
    not (shutil.which("javac") and shutil.which("apt-get")),
    reason="no JDK, or no Debian to fetch its client from",
)
async def test_java_producer_prints_the_record(
    start_worker: StartWorker, sqlite_url: str, amqp_url: str, queue: str, tmp_path: Path
) -> None:
    subprocess.run(
        ["apt-get", "download", "-qq", *JAVA_CLIENT],
        cwd=tmp_path,
        check=True,
        timeout=120,
        capture_output=True,
    )
    for package in tmp_path.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, tmp_path], check=True, timeout=60)
    jars = [tmp_path / "usr/share/java" / jar for jar in ("amqp-client.jar", "slf4j-api.jar")]
    start_worker(sqlite_url)

    def create(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                "java",
                "-cp",
                ":".join(map(str, jars)),
                ROOT / "deploy/examples/java/CreateFlowRun.java",
                *arguments,
            ],
            env={**os.environ, "WORKER_AMQP_URL": amqp_url, "WORKER_QUEUE": queue},
            capture_output=True,
            text=True,
            timeout=60,
        )

    created, existing, refused = [
        await asyncio.to_thread(create, *arguments)
        for arguments in ([FLOW_ID, 'a "key"'], [FLOW_ID, 'a "key"'], ["no-uuid"])
    ]
    assert created.returncode == 0, created.stderr
    status, _, record = created.stdout.partition("\n")
    assert status == "201 flow_run"
    (run,) = await fetch_runs(sqlite_url)
    assert (json.loads(record)["id"], json.loads(record)["idempotency_key"]) == (run["id"], 'a "key"')
    assert existing.stdout.startswith("200 flow_run")
    assert refused.returncode == 1
    assert refused.stdout.startswith("422 error")


@pytest.fixture
def broker_with_management() -> Iterator[RabbitMQ]:
    with RabbitMQ(plugins=["rabbitmq_management"]) as node:
        yield node


@pytest.mark.skipif(not shutil.which("rabbitmqadmin"), reason="no rabbitmqadmin here")
async def test_the_shell_sends_a_request_with_rabbitmqadmin(
    broker_with_management: RabbitMQ, start_worker: StartWorker, sqlite_url: str, queue: str
) -> None:
    start_worker(sqlite_url, amqp_url=broker_with_management.url)
    port = broker_with_management.management_url.rpartition(":")[2]

    def create(body: str) -> list[dict[str, str]]:
        done = subprocess.run(
            [ROOT / "deploy/examples/shell/create.sh", body],
            env={
                **os.environ,
                "WORKER_QUEUE": queue,
                "RABBITMQADMIN": f"rabbitmqadmin --host 127.0.0.1 --port {port}",
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        replies: list[dict[str, str]] = json.loads(done.stdout)
        return replies

    (created,) = await asyncio.to_thread(create, json.dumps({"flow_id": FLOW_ID}))
    (run,) = await fetch_runs(sqlite_url)
    assert json.loads(created["payload"])["id"] == run["id"]
    (refused,) = await asyncio.to_thread(create, "[]")
    assert "422" in json.dumps(refused["properties"])
