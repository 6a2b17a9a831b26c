"""Monitoring with the programs that it is for: a real Prometheus on a real worker and a real
RabbitMQ.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from tests.conftest import StartWorker
from tests.support.postgresql import PostgreSQL
from tests.support.processes import ServerProcess, answers, free_ports
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import ROOT

MONITORING = ROOT / "deploy/monitoring"
FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of prometheus and promtool: from the search path, or from Debian's package,
    unpacked but not installed.
    """
    if found := shutil.which("promtool"):
        return Path(found).parent
    if not shutil.which("apt-get"):
        pytest.skip("no promtool here, and no Debian to fetch it from")
    folder = tmp_path_factory.mktemp("prometheus")
    subprocess.run(
        ["apt-get", "download", "-qq", "prometheus"], cwd=folder, check=True, timeout=120, capture_output=True
    )
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", package, folder], check=True, timeout=60)
    return folder / "usr/bin"


def promtool(programs: Path, *arguments: str) -> None:
    done = subprocess.run(
        [programs / "promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_and_rules_are_valid(programs: Path) -> None:
    promtool(programs, "check", "config", "prometheus.yml")


def test_each_alert_fires_when_it_should_and_not_when_it_should_not(programs: Path) -> None:
    promtool(programs, "test", "rules", "alerts.test.yml")
    rules = {rule["alert"] for group in alert_groups() for rule in group["rules"]}
    cases = yaml.safe_load((MONITORING / "alerts.test.yml").read_text())["tests"]
    tested = [
        (each["alertname"], bool(each["exp_alerts"])) for case in cases for each in case["alert_rule_test"]
    ]
    assert rules == {name for name, fires in tested if fires} == {name for name, fires in tested if not fires}


def test_each_alert_is_explained() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "deploy/OPERATIONS.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for group in alert_groups():
        for rule in group["rules"]:
            page, _, anchor = rule["annotations"]["runbook"].partition("#")
            assert page == "deploy/OPERATIONS.md"
            assert anchor in anchors


def alert_groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return groups


def queries() -> list[str]:
    """All queries of the dashboard and of the alerts."""
    dashboard = json.loads((MONITORING / "grafana/dashboards/flow-run-worker.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [rule["expr"] for group in alert_groups() for rule in group["rules"]]
    return [query.replace("$__rate_interval", "10s").replace("$queue", "flow-runs.create") for query in found]


class Prometheus:
    """A Prometheus with our rules, on a worker and a broker."""

    def __init__(self, programs: Path, folder: Path, worker: str, broker: str) -> None:
        (port,) = free_ports(1)
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / "alerts.yml")]
        workers, rabbitmq = config["scrape_configs"]
        del workers["dns_sd_configs"]
        workers["static_configs"] = [{"targets": [urlsplit(worker).netloc]}]
        rabbitmq["static_configs"] = [{"targets": [urlsplit(broker).netloc]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{port}"
        arguments = (
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        self.process = ServerProcess(
            [str(programs / "prometheus"), *arguments], folder / "output", env=dict(os.environ)
        )
        self.process.wait_until(lambda: answers(port))

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, query: str) -> float | None:
        result = self.get("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None


@pytest.fixture
def broker_with_metrics() -> Iterator[RabbitMQ]:
    with RabbitMQ(plugins=["rabbitmq_prometheus"]) as node:
        yield node


async def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.2)


async def test_prometheus_reads_workers_and_broker_and_evaluates_the_alerts(
    programs: Path, broker_with_metrics: RabbitMQ, start_worker: StartWorker, tmp_path: Path
) -> None:
    queue = "flow-runs.create"
    with PostgreSQL() as cluster:
        worker = start_worker(
            cluster.create_database(), amqp_url=broker_with_metrics.url, queue=queue, states="final"
        )
        prometheus = Prometheus(programs, tmp_path, worker.http, broker_with_metrics.metrics_url)
        try:
            async with Producer(broker_with_metrics.url, queue) as producer:
                for number in range(40):
                    await producer.request({"flow_id": FLOW_ID, "idempotency_key": f"key-{number % 30}"})
                    await producer.request({"flow_id": number})
                    await asyncio.sleep(0.1)
                await eventually(lambda: prometheus.value("sum(flow_run_worker_requests_total)") == 80)
                await eventually(
                    lambda: prometheus.value(f'rabbitmq_detailed_queue_consumers{{queue="{queue}"}}') == 1
                )
            by_outcome = {
                each["metric"]["outcome"]: float(each["value"][1])
                for each in prometheus.get(
                    "query", query="sum by (outcome) (flow_run_worker_requests_total)"
                )["result"]
            }
            assert by_outcome == {"created": 30, "existing": 10, "refused": 40}
            targets = prometheus.get("targets")["activeTargets"]
            assert {(each["labels"]["job"], each["health"]) for each in targets} == {
                ("flow-run-worker", "up"),
                ("rabbitmq", "up"),
            }
            known = set(prometheus.get("label/__name__/values"))
            for query in queries():
                prometheus.get("query", query=query)
                named = set(re.findall(r"\b(?:flow_run_worker|rabbitmq_detailed|process)_\w+", query))
                assert named <= known, query
            rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
            assert len(rules) == sum(len(group["rules"]) for group in alert_groups())
            assert {rule["health"] for rule in rules} == {"ok"}

            cluster.stop()  # while the worker is idle
            alerts = (
                'ALERTS{alertname="FlowRunWorkerDependencyAway", dependency="database", alertstate="pending"}'
            )
            await eventually(lambda: prometheus.value(alerts) == 1)
            cluster.start()
            await eventually(lambda: prometheus.value(alerts) is None)
        finally:
            prometheus.process.stop()
