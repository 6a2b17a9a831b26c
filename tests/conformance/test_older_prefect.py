"""The database of an older Prefect, of other migrations: recognised, and its server shows what the
worker's replies said.
"""

from datetime import datetime
from typing import Any

import httpx

from tests.conformance.cases import CASES
from tests.conformance.comparison import differences
from tests.conformance.prefect_server import OLDER_VERSION, PrefectServer
from tests.conftest import StartWorker
from tests.support.postgresql import PostgreSQL
from tests.support.producer import Producer

# What depends on when one looks.
MOVING = {"estimated_run_time", "estimated_start_time_delta"}


def instants(value: Any, field: str = "") -> Any:
    """Times as instants, since the server shows all of them in UTC; the pause keys are a set."""
    if isinstance(value, dict):
        return {key: instants(each, key) for key, each in value.items() if key not in MOVING}
    if field == "pause_keys" and value is not None:
        return sorted(value)
    if isinstance(value, str) and field.endswith(
        ("time", "timestamp", "created", "updated", "expiration", "timeout")
    ):
        return datetime.fromisoformat(value).timestamp()
    return value


async def test_its_server_shows_what_the_replies_said(
    start_worker: StartWorker, producer: Producer, postgresql: PostgreSQL
) -> None:
    database_url = postgresql.create_database()
    with PrefectServer(database_url, OLDER_VERSION) as server:
        worker = start_worker(database_url)
        assert "kind=prefect" in worker.output
        different: list[str] = []
        compared = 0
        async with httpx.AsyncClient(base_url=server.api, timeout=60) as http:
            flow_id = (await http.post("/flows/", json={"name": "older"})).json()["id"]
            for case in CASES:
                reply = await producer.request(case.body(flow_id), headers=case.headers)
                if reply.status == 201:
                    shown = (await http.get(f"/flow_runs/{reply.body['id']}")).json()
                    compared += 1
                    different += [
                        f"{case.name}: {each}" for each in differences(instants(shown), instants(reply.body))
                    ]
    assert not different, "\n".join(different)
    assert compared > 150
    print(f"Prefect {OLDER_VERSION}: {compared} runs read back over its API, all equal")
