"""``python -m tests.benchmarks.deployments``: compares requests for runs of a deployment with
requests for runs of its flow, in turn on one worker and a Prefect server's database, and prints the
ratios of each round. ``--rounds``, ``--requests``.

The deployment has a process pool, an enforced parameter schema, and job variables. The runs of its
flow are SCHEDULED for the same pool, so its workers pick up both.
"""

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import uvloop

from tests.benchmarks.database import tidy
from tests.conformance.prefect_server import PrefectServer
from tests.conformance.shared import PROCESS_TEMPLATE
from tests.support.postgresql import PostgreSQL
from tests.support.rabbitmq import RabbitMQ
from worker.bench.fleet import Fleet
from worker.bench.load import open_load
from worker.broker.topology import Topology
from worker.contract.encoding import dumps
from worker.contract.kinds import CREATE, FROM_DEPLOYMENT

SCHEMA = {
    "title": "Parameters",
    "type": "object",
    "properties": {
        "number": {"title": "number", "type": "integer", "position": 0},
        "name": {"title": "name", "type": "string", "default": "nobody", "position": 1},
        "items": {"title": "items", "type": "array", "items": {"type": "string"}, "position": 2},
    },
    "required": ["number"],
}


def _set_up(server: PrefectServer) -> tuple[str, str, str]:
    """Make a deployment; returns the flow's id, the deployment's name and the pool's name."""
    with httpx.Client(base_url=server.api, timeout=60) as http:

        def post(path: str, body: dict[str, Any]) -> Any:
            response = http.post(path, json=body)
            assert response.is_success, response.text
            return response.json()

        name = f"bench-{uuid4().hex[:8]}"
        flow = post("/flows/", {"name": name})["id"]
        post("/work_pools/", {"name": name, "type": "process", "base_job_template": PROCESS_TEMPLATE})
        fields = {
            "name": name,
            "flow_id": flow,
            "work_pool_name": name,
            "version": "1.0",
            "tags": ["bench"],
            "parameters": {"name": "somebody"},
            "parameter_openapi_schema": SCHEMA,
            "enforce_parameter_schema": True,
            "job_variables": {"env": {"A": "1"}},
        }
        post("/deployments/", fields)
        return flow, f"{name}/{name}", name


async def _measure(
    broker: str, database: str, requests: int, body: Callable[[int], bytes], type_: str
) -> tuple[float, float]:
    """Requests a second of one worker whose queue was filled before its start, and its CPU in
    microseconds for each request, its start included.
    """
    topology = Topology(f"flow-runs-bench-{uuid4().hex[:8]}.create")
    before = _cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        async with open_load(broker, topology, body, type_) as load:
            await load.fill(requests)
            async with Fleet(broker, database, topology.queue, Path(folder)).running() as running:
                served = await running.watch(load.all_at_once(requests))
    cpu = (_cpu_seconds() - before) / requests * 1e6
    await tidy(database)
    return served.replies / served.seconds, cpu


def _cpu_seconds() -> float:
    """CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def compare(broker: str, database: str, made: tuple[str, str, str], rounds: int, requests: int) -> None:
    """Print what each round measured."""
    flow, deployment, pool = made

    def of_flow(number: int) -> bytes:
        return dumps(
            {
                "flow_id": flow,
                "work_pool_name": pool,
                "state": {"type": "SCHEDULED"},
                "parameters": {"number": number},
                "tags": ["bench"],
                "idempotency_key": f"{key}-{number}",
            }
        )

    def of_deployment(number: int) -> bytes:
        return dumps(
            {
                "deployment_name": deployment,
                "parameters": {"number": number},
                "tags": ["bench"],
                "idempotency_key": f"{key}-{number}",
            }
        )

    def with_job_variables(number: int) -> bytes:
        return dumps(json.loads(of_deployment(number)) | {"job_variables": {"env": {"N": str(number)}}})

    kinds = {
        "of a flow": (of_flow, CREATE.type),
        "of a deployment": (of_deployment, FROM_DEPLOYMENT.type),
        "of a deployment, with job variables": (with_job_variables, FROM_DEPLOYMENT.type),
    }
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    cpu_ratios: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds):
        found: dict[str, tuple[float, float]] = {}
        for name, (body, type_) in kinds.items():
            key = uuid4().hex
            found[name] = await _measure(broker, database, requests, body, type_)
            ratios[name].append(found[name][0] / found["of a flow"][0])
            cpu_ratios[name].append(found[name][1] / found["of a flow"][1])
        each = (f"{name} {rate:,.0f}/s, {cpu:.0f} us of CPU" for name, (rate, cpu) in found.items())
        print(f"round {number + 1}: {'; '.join(each)}", flush=True)
    for what, by_name in (("requests a second", ratios), ("CPU a request", cpu_ratios)):
        for name, several in by_name.items():
            print(
                f"{what}, {name}: {statistics.median(several):.2f} of a run of a flow "
                f"({min(several):.2f} to {max(several):.2f})"
            )


def main() -> None:
    """Start the servers, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000)
    arguments = parser.parse_args()
    with RabbitMQ() as rabbitmq, PostgreSQL() as postgresql:
        database = postgresql.create_database()
        with PrefectServer(database) as server:
            made = _set_up(server)
        # The server is stopped by now: it would use the same cores.
        work = compare(rabbitmq.url, database, made, arguments.rounds, arguments.requests)
        uvloop.run(work)


if __name__ == "__main__":
    main()
