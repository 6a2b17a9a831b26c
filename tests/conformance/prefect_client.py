"""Reads runs with Prefect's own client, as its clients and workers do. It runs in Prefect's
environment, which has no code of the worker.

Each line of standard input is a question in JSON; each line of standard output is its answer.
"""

import asyncio
import json
import sys
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client  # type: ignore[import-not-found,unused-ignore]


async def main() -> None:
    async with get_client() as client:
        for line in sys.stdin:
            what, which = json.loads(line)
            try:
                answer: Any = await _ASKED[what](client, which)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"[:300]
            print(json.dumps(answer), flush=True)


async def _run(client: Any, run_id: str) -> list[str]:
    return [str((await client.read_flow_run(UUID(run_id))).id)]


async def _of_pool(client: Any, pool: str) -> list[str]:
    found = await client.get_scheduled_flow_runs_for_work_pool(pool)
    return [str(each.flow_run.id) for each in found]


async def _of_deployment(client: Any, deployment_id: str) -> list[str]:
    found = await client.get_scheduled_flow_runs_for_deployments([UUID(deployment_id)])
    return [str(each.id) for each in found]


_ASKED = {"run": _run, "pool": _of_pool, "deployment": _of_deployment}

if __name__ == "__main__":
    asyncio.run(main())
