"""The databases of older Prefects with other migrations: the worker recognises them, and their
servers show the same records as its replies.
"""

from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.conformance.cases import CASES
from tests.conformance.comparison import differences
from tests.conformance.prefect_server import OLDER_VERSIONS, PrefectServer
from tests.conftest import StartWorker
from tests.support.database import execute, fetch
from tests.support.newer_column import ADD, COLUMN, newer_worker
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer
from worker.operate.doctor.prefect_versions import version_at

# These depend on the time of reading.
MOVING = {"estimated_run_time", "estimated_start_time_delta"}


def instants(value: Any, field: str = "") -> Any:
    """Times as instants, since the server shows all of them in UTC. The pause keys become a set."""
    if isinstance(value, dict):
        return {key: instants(each, key) for key, each in value.items() if key not in MOVING}
    if field == "pause_keys" and value is not None:
        return sorted(value)
    if isinstance(value, str) and field.endswith(
        ("time", "timestamp", "created", "updated", "expiration", "timeout")
    ):
        return datetime.fromisoformat(value).timestamp()
    return value


async def served(http: httpx.AsyncClient, runs: list[dict[str, Any]]) -> list[Any]:
    """The runs as the server's API shows them, read concurrently.

    Up to 3.8.8 its lists fail on integers of more than 64 bits, even in runs of its own.
    """
    alone = [run["id"] for run in runs if "big" in run["parameters"]]
    shown = [(await http.get(f"/flow_runs/{each}")).json() for each in alone]
    listed = [run["id"] for run in runs if run["id"] not in alone]
    for start in range(0, len(listed), 100):
        wanted = {"flow_runs": {"id": {"any_": listed[start : start + 100]}}, "limit": 100}
        response = await http.post("/flow_runs/filter", json=wanted)
        assert response.is_success, response.text[:500]
        shown += response.json()
    return shown


# The oldest one differs most.
@pytest.mark.parametrize(
    "version",
    [*(pytest.param(each, marks=pytest.mark.long) for each in OLDER_VERSIONS[:-1]), OLDER_VERSIONS[-1]],
)
async def test_its_server_shows_what_the_replies_said(
    version: str, start_worker: StartWorker, producer: Producer, postgresql: PostgreSQL
) -> None:
    database_url = postgresql.create_database()
    # The worker starts before the tables exist.
    worker = start_worker(database_url, wait=False, database_kind="prefect")
    worker.wait_until_logged("Prefect has not made its tables")
    with PrefectServer(database_url, version) as server:
        worker.wait_until_logged("kind=prefect")
        different: list[str] = []
        compared = 0
        async with httpx.AsyncClient(base_url=server.api, timeout=60) as http:
            flow_id = (await http.post("/flows/", json={"name": "older"})).json()["id"]
            sent = [await producer.publish(case.body(flow_id), headers=case.headers) for case in CASES]
            replies = zip(CASES, await producer.replies_to(sent), strict=True)
            created = {reply.body["id"]: (case, reply) for case, reply in replies if reply.status == 201}
            for shown in await served(http, [reply.body for _, reply in created.values()]):
                case, reply = created.pop(shown["id"])
                compared += 1
                different += [
                    f"{case.name}: {each}" for each in differences(instants(shown), instants(reply.body))
                ]
    assert not created, "not shown by the server"
    (revision,) = await fetch(database_url, "SELECT version_num FROM alembic_version")
    assert version_at("postgresql", revision["version_num"]) == version
    assert not different, "\n".join(different)
    assert compared > 150
    assert await newer_worker(database_url, flow_id) == {"lacks": [f"flow_run.{COLUMN}"], "shown": "usual"}
    await execute(database_url, ADD)
    assert await newer_worker(database_url, flow_id) == {"lacks": [], "shown": "one"}
    print(f"Prefect {version}: {compared} runs read back over its API, all equal")
