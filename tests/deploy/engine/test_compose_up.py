"""docker-compose.yml by Docker Compose: its profiles, a larger fleet, and what happens to workers
whose container, network, memory or broker fails.

The images are made of packages (``images.yml``), all but Grafana's.
"""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
import yaml

from tests.deploy.engine.project import Project, wait_for
from tests.deploy.test_compose import SERVICES
from tests.support.command import command
from tests.support.producer import Producer
from tests.support.shapes import labels_of_lists, objects, text
from tests.support.worker_process import ROOT

# The first of these tests builds all images, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(1800)

NOT_TO_BE_HAD = "grafana"
STARTED = sorted(SERVICES.keys() - {NOT_TO_BE_HAD})
ADMIN = "amqp://admin:admin-development@localhost:5672/"
PRODUCER = "amqp://producer:producer-development@localhost:5672/"
QUEUE = "flow-runs.create"
FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
# Those that take the most memory.
WORST = (text(1_000_000), objects(900_000), labels_of_lists(70_000))
# Prints the page at the URL in its argument.
FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=60).read().decode())"
PREFECT = "http://127.0.0.1:4200/api"
PROMETHEUS = "http://127.0.0.1:9090/api/v1"


async def create(*arguments: str) -> tuple[str, dict[str, Any]]:
    """Run the command of deploy/README.md; returns the status and the record."""
    done = await command("create", *arguments, amqp_url=PRODUCER)
    assert done.code == 0, done.out + done.err
    return done.err.split()[0], json.loads(done.out)


def get(url: str) -> Any:
    return httpx.get(url, timeout=60).raise_for_status().json()


def test_compose_reads_the_settings_as_the_tests_do(project: Project) -> None:
    services = project.config()["services"]
    assert services.keys() == SERVICES.keys()
    for name, service in services.items():
        environment = {key: str(value) for key, value in SERVICES[name].get("environment", {}).items()}
        assert service.get("environment", {}) == environment
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}


@pytest.mark.parametrize("name", STARTED)
def test_service_runs_with_the_rights_that_the_file_leaves_it(project: Project, name: str) -> None:
    (container,) = project.containers(name)
    if SERVICES[name]["restart"] == "no":
        assert project.inspect(container)["State"]["ExitCode"] == 0
        return
    status = project.inside(container, "cat", "/proc/1/status").stdout
    assert not re.search(r"^Uid:.*\b0\b", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    written = project.inside(container, "touch", "/etc/written").stderr
    assert ("Read-only" if SERVICES[name].get("read_only") else "Permission denied") in written


async def test_request_is_served_by_the_worker(project: Project) -> None:
    status, record = await create("--flow-id", FLOW_ID, "--idempotency-key", "order-4711")
    assert status == "201"
    status, again = await create("--flow-id", FLOW_ID, "--idempotency-key", "order-4711")
    assert (status, again["id"]) == ("200", record["id"])


async def test_request_becomes_a_run_of_the_prefect_server(project: Project) -> None:
    flow = httpx.post(f"{PREFECT}/flows/", json={"name": "orders"}, timeout=60).raise_for_status().json()
    queue = SERVICES["prefect-worker"]["environment"]["WORKER_QUEUE"]
    status, record = await create("--queue", queue, "--flow-id", flow["id"])
    assert status == "201"
    assert get(f"{PREFECT}/flow_runs/{record['id']}")["name"] == record["name"]


def test_prometheus_finds_both_workers_and_the_broker_by_their_names(project: Project) -> None:
    def up() -> dict[str, int]:
        targets = get(f"{PROMETHEUS}/targets")["data"]["activeTargets"]
        jobs = [each["labels"]["job"] for each in targets if each["health"] == "up"]
        return {job: jobs.count(job) for job in jobs}

    wait_for(lambda: up() == {"flow-run-worker": 2, "rabbitmq": 1}, "three targets that are up")
    rules = get(f"{PROMETHEUS}/rules")["data"]["groups"]
    assert {group["name"] for group in rules} == {"flow-run-worker", "flow-run-worker-queues"}


def test_grafana_would_find_its_files_and_its_queries_answered(project: Project) -> None:
    """A partial check without Grafana: its files' paths, and the queries that it would send."""
    service = SERVICES[NOT_TO_BE_HAD]
    (worker,) = project.containers("worker")
    targets = dict(each.split(":")[:2] for each in service["volumes"] if each.startswith("./"))
    provisioning = {target: ROOT / source for source, target in targets.items()}
    (source,) = provisioning["/etc/grafana/provisioning"].glob("datasources/*.yml")
    (provider,) = provisioning["/etc/grafana/provisioning"].glob("dashboards/*.yml")
    (datasource,) = yaml.safe_load(source.read_text())["datasources"]
    path = yaml.safe_load(provider.read_text())["providers"][0]["options"]["path"]
    (dashboard,) = provisioning[path].glob("*.json")
    for panel in json.loads(dashboard.read_text())["panels"]:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == datasource["uid"]
            query = target["expr"].replace("$__rate_interval", "1m").replace("$queue", "flow-runs.create")
            # From inside, by the data source's host name: no port is published for it.
            url = f"{datasource['url']}/api/v1/query?query={quote(query)}"
            done = project.inside(worker, "python", "-c", FETCH, url)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["status"] == "success"


def test_passwords_of_env_reach_both_ends(project: Project) -> None:
    """The database's passwords, changed as deploy/README.md says."""
    file = (ROOT / "docker-compose.yml").read_text()
    changed = {name: f"another-{name}" for name in re.findall(r"\$\{(\w+PASSWORD):-", file)}
    another = Project(project.engine, "another")
    another.compose("up", "--wait", "postgres", **changed)
    another.compose("run", "migrate", **changed)
    (postgres,) = another.containers("postgres")
    for service, name in (
        ("migrate", "WORKER_DATABASE_URL"),
        ("worker", "WORKER_DATABASE_URL"),
        ("prefect-worker", "WORKER_DATABASE_URL"),
        ("prefect", "PREFECT_SERVER_DATABASE_CONNECTION_URL"),
    ):
        for environment, accepted in ((changed, True), ({}, False)):
            url = another.config(**environment)["services"][service]["environment"][name]
            select = ("psql", url.replace("+asyncpg", ""), "--command", "SELECT 1")
            assert (another.inside(postgres, *select).returncode == 0) is accepted, service
    another.compose("down", "--volumes")


def test_order_of_the_shop_starts_the_deployment(project: Project) -> None:
    """The shop publishes to its own exchange, and knows nothing of Prefect."""
    publish = ["sh", str(ROOT / "deploy/examples/plain/publish.sh"), "4711"]
    done = subprocess.run(publish, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"routed": True}
    wait_for(
        lambda: "shipping order 4711, express: False" in project.compose("--profile", "*", "logs", "ship"),
        "the flow's line",
    )


# -- a fleet, and its faults


async def served_through(project: Project, fault: Callable[[], object]) -> None:
    """Publish requests while a fault happens; each is answered, and makes one run."""
    key = uuid4().hex
    async with Producer(ADMIN, QUEUE) as producer:
        happening = asyncio.create_task(asyncio.to_thread(fault))
        asked: list[str] = []
        while not happening.done() or len(asked) < 200:
            asked.append(
                await producer.publish({"flow_id": FLOW_ID, "idempotency_key": f"{key}-{len(asked)}"})
            )
            await asyncio.sleep(0.002)
        await happening
        replies = await producer.replies_to(asked, 400)
    assert {reply.status for reply in replies} <= {200, 201}
    assert int(project.sql(f"SELECT count(*) FROM flow_run WHERE idempotency_key LIKE '{key}-%'")) == len(
        asked
    )


@pytest.fixture(scope="module")
def fleet(project: Project) -> list[str]:
    """``docker compose up --scale worker=4``."""
    return project.scale(4)


def test_each_worker_of_a_fleet_serves_the_queue(project: Project, fleet: list[str]) -> None:
    assert len(fleet) == 4
    (rabbitmq,) = project.containers("rabbitmq")

    def consumers() -> list[str]:
        # Quorum queues tell their numbers every few seconds.
        listed = project.inside(rabbitmq, "rabbitmqctl", "list_queues", "--quiet", "name", "consumers")
        return listed.stdout.splitlines()

    wait_for(lambda: f"{QUEUE}\t4" in consumers(), "four consumers")


async def test_docker_stop_loses_nothing(project: Project, fleet: list[str]) -> None:
    def stop() -> None:
        project.engine.docker("stop", "--time", "45", fleet[0])
        assert project.inspect(fleet[0])["State"]["ExitCode"] == 0

    await served_through(project, stop)
    project.engine.docker("start", fleet[0])


async def test_worker_is_cut_from_its_network(project: Project, fleet: list[str]) -> None:
    def cut() -> None:
        (network,) = project.engine.docker(
            "inspect",
            "--format",
            "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}",
            fleet[1],
        ).split()
        project.engine.docker("network", "disconnect", network, fleet[1])
        wait_for(lambda: not project.ready(fleet[1]), "the cut worker notices")
        project.engine.docker("network", "connect", network, fleet[1])
        wait_for(lambda: project.ready(fleet[1]), "the worker serves again")

    await served_through(project, cut)
    assert project.inspect(fleet[1])["State"]["Status"] == "running"


async def test_broker_is_paused(project: Project, fleet: list[str]) -> None:
    def pause() -> None:
        project.compose("pause", "rabbitmq")
        time.sleep(10)
        project.compose("unpause", "rabbitmq")
        # A pause makes it unhealthy until its next check.
        (rabbitmq,) = project.containers("rabbitmq")
        wait_for(
            lambda: project.inspect(rabbitmq)["State"]["Health"]["Status"] == "healthy", "a healthy broker"
        )

    await served_through(project, pause)


# -- limits of memory


@pytest.fixture(scope="module")
def alone(project: Project, fleet: list[str]) -> str:
    """The only worker."""
    (worker,) = project.scale(1)
    return worker


async def served_within(
    project: Project, worker: str, mebibytes: int, rounds: int, then: Callable[[], object]
) -> int:
    """Publish large requests for a worker with this limit; each is answered in the end, and each
    good one makes one run.

    Args:
        rounds: how many of each kind.
        then: called while they are served.

    Returns:
        how often the worker was killed for its memory.
    """
    project.engine.docker("stop", "--time", "45", worker)
    began, runs = str(time.time()), int(project.sql("SELECT count(*) FROM flow_run"))
    limit(project, worker, mebibytes)
    async with Producer(ADMIN, QUEUE) as producer:
        asked = [await producer.publish(body) for _ in range(rounds) for body in WORST]
        project.engine.docker("start", worker)
        await asyncio.to_thread(then)
        replies = await producer.replies_to(asked, 400)
    # 200 where the worker was killed between its commit and its reply.
    statuses = [201 if reply.status == 200 else reply.status for reply in replies]
    assert statuses == [201, 201, 422] * rounds
    assert int(project.sql("SELECT count(*) FROM flow_run")) == runs + 2 * rounds
    of = ("--filter", f"container={worker}", "--filter", "event=oom")
    events = project.engine.docker("events", "--since", began, "--until", str(time.time()), *of)
    return len(events.splitlines())


def limit(project: Project, worker: str, mebibytes: int) -> None:
    size = f"{mebibytes}m"
    project.engine.docker("update", "--memory", size, "--memory-swap", size, worker)


async def test_worst_bodies_fit_into_512_mib(project: Project, alone: str) -> None:
    """More than a worker holds at once."""
    assert await served_within(project, alone, 512, 24, lambda: None) == 0
    assert project.inspect(alone)["RestartCount"] == 0


async def test_worker_killed_for_its_memory_starts_again_and_loses_nothing(
    project: Project, alone: str
) -> None:
    """By the file's restart policy."""

    def killed() -> bool:
        return bool(project.inspect(alone)["RestartCount"])

    def allow_more() -> None:
        wait_for(killed, "a kill")
        limit(project, alone, 512)

    assert await served_within(project, alone, 128, 8, allow_more) > 0


# -- the end


def test_every_service_ends_by_its_signal_within_its_time(project: Project) -> None:
    """Keep this test last: it stops the services that the others use."""
    # Longer than the file says, so that a busy machine fails no test.
    project.compose("--profile", "*", "stop", "--timeout", "120")
    codes = {
        name: [project.inspect(each)["State"]["ExitCode"] for each in project.containers(name)]
        for name in STARTED
    }
    assert codes == {name: [0] for name in STARTED}
