"""docker-compose.yml, started as a whole: each service in its own container, with the file's
environment, command, user, mounts, rights, ports, health check and order.

There is no engine and no image registry here. ``tests/support/stand_ins.py`` has a substitute for
each image except Grafana's.
"""

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.support.compose import Project, ServiceFailed, interpolated
from tests.support.container import FETCH, Image
from tests.support.processes import ServerFailed, wait_until
from tests.support.stand_ins import StandIns, prepare
from tests.support.worker_process import ROOT

# The first of these tests makes the base image, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(1800)

FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
NOT_TO_BE_HAD = "grafana"
PRODUCER = "amqp://producer:producer-development@localhost:5672/"
FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
PREFECT = "http://127.0.0.1:4200/api"
PROMETHEUS = "http://127.0.0.1:9090/api/v1"


def compose_file() -> dict[str, Any]:
    """The file, without the service that can't be started here."""
    file = copy.deepcopy(FILE)
    del file["services"][NOT_TO_BE_HAD]
    return file


@pytest.fixture(scope="module")
def images(image: Image, programs: Any) -> StandIns:
    try:
        prepare()
    except ServerFailed as why:
        pytest.skip(f"no service is started here: {why}")
    return StandIns(image, programs)


@pytest.fixture(scope="module")
def project(images: StandIns) -> Iterator[Project]:
    """All services: ``docker compose --profile '*' up``."""
    with Project(compose_file(), ROOT, images) as project:
        project.up("monitoring", "prefect", "plain")
        yield project


def create(project: Project, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run the command of deploy/README.md on the machine with the published ports; returns the
    status and the record.
    """
    command = (sys.executable, "-m", "worker", "create", "--amqp-url", PRODUCER, *arguments)
    done = project.network.run(*command, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr.split()[0], json.loads(done.stdout)


def test_every_service_runs_with_the_rights_that_the_file_leaves_it(project: Project) -> None:
    for name, service in compose_file()["services"].items():
        container = project[name]
        if service["restart"] == "no":
            assert container.code == 0, container.output
            continue
        status = container.status()
        assert "0" not in status["Uid"].split(), name
        assert int(status["CapBnd"], 16) == 0, name
        assert status["NoNewPrivs"] == "1", name
        written = container.run(["touch", "/etc/written"]).stderr
        assert ("Read-only" if service.get("read_only") else "Permission denied") in written, name


def test_request_is_served_by_the_worker(project: Project) -> None:
    status, record = create(project, "--flow-id", FLOW_ID, "--idempotency-key", "order-4711")
    assert status == "201"
    status, again = create(project, "--flow-id", FLOW_ID, "--idempotency-key", "order-4711")
    assert (status, again["id"]) == ("200", record["id"])


def test_request_becomes_a_run_of_the_prefect_server(project: Project) -> None:
    """The server's API makes the flow, on the published port."""
    post = (
        "import json, sys, urllib.request as r; request = r.Request(sys.argv[1], sys.argv[2].encode(), "
        "{'Content-Type': 'application/json'}); print(r.urlopen(request, timeout=60).read().decode())"
    )
    made = project.network.checked(sys.executable, "-c", post, f"{PREFECT}/flows/", '{"name": "orders"}')
    queue = FILE["services"]["prefect-worker"]["environment"]["WORKER_QUEUE"]
    status, record = create(project, "--queue", queue, "--flow-id", json.loads(made)["id"])
    assert status == "201"
    assert json.loads(project.network.get(f"{PREFECT}/flow_runs/{record['id']}"))["name"] == record["name"]


def test_prometheus_finds_both_workers_and_the_broker_by_their_names(project: Project) -> None:
    def up() -> dict[str, int]:
        targets = json.loads(project.network.get(f"{PROMETHEUS}/targets"))["data"]["activeTargets"]
        jobs = [each["labels"]["job"] for each in targets if each["health"] == "up"]
        return {job: jobs.count(job) for job in jobs}

    wait_until(lambda: up() == {"flow-run-worker": 2, "rabbitmq": 1}, "three targets that are up")
    rules = json.loads(project.network.get(f"{PROMETHEUS}/rules"))["data"]["groups"]
    assert {group["name"] for group in rules} == {"flow-run-worker", "flow-run-worker-queues"}


def test_grafana_would_find_its_files_and_its_queries_answered(project: Project) -> None:
    """A partial check without Grafana: its files' paths, and the queries that it would send."""
    service = FILE["services"]["grafana"]
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
            done = project["worker"].run(["python", "-c", FETCH, url])
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["status"] == "success"


def test_passwords_of_env_reach_both_ends(images: StandIns) -> None:
    """The database's passwords, changed as deploy/README.md says."""
    names = set(re.findall(r"\$\{(\w+):-", json.dumps(FILE["services"]["postgres"])))
    variables = {name: f"another-{number}" for number, name in enumerate(sorted(names))}
    with Project(compose_file(), ROOT, images, variables) as project:
        project.up(only="migrate")
        for service, name in (
            ("migrate", "WORKER_DATABASE_URL"),
            ("worker", "WORKER_DATABASE_URL"),
            ("prefect-worker", "WORKER_DATABASE_URL"),
            ("prefect", "PREFECT_SERVER_DATABASE_CONNECTION_URL"),
        ):
            given = FILE["services"][service]["environment"][name]
            for url, accepted in ((interpolated(given, variables), True), (interpolated(given, {}), False)):
                select = ["psql", url.replace("+asyncpg", ""), "--command", "SELECT 1"]
                assert (project["postgres"].run(select).returncode == 0) is accepted, service


def test_order_of_the_shop_starts_the_deployment(project: Project) -> None:
    """The shop publishes to its own exchange, and knows nothing of Prefect."""
    publish = ROOT / "deploy/examples/plain/publish.sh"
    done = project.network.run("sh", str(publish), "4711")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"routed": True}
    wait_until(lambda: "shipping order 4711, express: False" in project["ship"].output, "the flow's line")


# -- mistakes


def wrong_password(service: dict[str, Any]) -> None:
    service["environment"]["WORKER_DATABASE_URL"] = (
        "postgresql+asyncpg://flow_runs_worker:no@postgres/flow_runs"
    )


def queue_of_another(service: dict[str, Any]) -> None:
    service["environment"]["WORKER_QUEUE"] = "prefect-flow-runs.create"


def unknown_user(service: dict[str, Any]) -> None:
    service["user"] = "worker"


def unknown_command(service: dict[str, Any]) -> None:
    service["command"] = ["server"]


@pytest.mark.parametrize("mistake", [wrong_password, queue_of_another, unknown_user, unknown_command])
def test_mistake_in_the_workers_words_is_found(
    project: Project, mistake: Callable[[dict[str, Any]], None]
) -> None:
    """A second worker, beside the running one."""
    service = copy.deepcopy(FILE["services"]["worker"])
    mistake(service)
    name = mistake.__name__.replace("_", "-")
    project.add(name, service)
    with pytest.raises(ServiceFailed, match=f"^{name} (ended with|can't be started)"):
        project.up(only=name)


def roles_elsewhere(services: dict[str, Any]) -> None:
    postgres = services["postgres"]
    postgres["volumes"][0] = postgres["volumes"][0].replace("/docker-entrypoint-initdb.d/", "/initdb.d/")


def no_place_for_the_socket(services: dict[str, Any]) -> None:
    services["postgres"]["tmpfs"].remove("/run/postgresql")


def variable_misspelt(services: dict[str, Any]) -> None:
    environment = services["postgres"]["environment"]
    environment["FLOW_RUNS_OWNER_PASSWD"] = environment.pop("FLOW_RUNS_OWNER_PASSWORD")


def file_that_is_not_there(services: dict[str, Any]) -> None:
    services["postgres"]["volumes"][0] = "./deploy/postgres/roles.sh:/docker-entrypoint-initdb.d/roles.sh:ro"


def definitions_elsewhere(services: dict[str, Any]) -> None:
    rabbitmq = services["rabbitmq"]
    (place,) = [number for number, each in enumerate(rabbitmq["volumes"]) if "definitions" in each]
    rabbitmq["volumes"][place] = "./deploy/rabbitmq/definitions.json:/etc/rabbitmq/definitions:ro"


@pytest.mark.parametrize(
    ("mistake", "service", "found"),
    [
        (roles_elsewhere, "migrate", "migrate ended with 1.*flow_runs_owner"),
        (no_place_for_the_socket, "postgres", "could not create lock file .*Read-only file system"),
        (variable_misspelt, "postgres", "FLOW_RUNS_OWNER_PASSWORD"),
        (file_that_is_not_there, "postgres", "mounts ./deploy/postgres/roles.sh, which is not there"),
        (definitions_elsewhere, "rabbitmq", "load_definitions invalid, file does not exist"),
    ],
)
def test_mistake_in_a_servers_words_is_found(
    images: StandIns, mistake: Callable[[dict[str, Any]], None], service: str, found: str
) -> None:
    file = compose_file()
    mistake(file["services"])
    with Project(file, ROOT, images) as project:
        with pytest.raises(ServiceFailed) as failed:
            project.up(only=service)
        assert re.search(found, str(failed.value), re.DOTALL), failed.value


# -- the end


def test_every_service_ends_by_its_signal_within_its_time(project: Project) -> None:
    """Keep this test last: it stops the services that the others use."""
    codes = project.down()
    assert {name: codes[name] for name in compose_file()["services"]} == dict.fromkeys(
        compose_file()["services"], 0
    )
