"""Runs of deployments: the same request to ``POST /api/deployments/{id}/create_flow_run`` and to a
worker on the same database, for two deployments that are alike.
"""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conformance.comparison import comparable, differences
from tests.conformance.deployment_cases import CASES, SETUPS, VARIABLES, DeploymentCase, Setup
from tests.conformance.shared import Both, Shared, assert_served
from tests.support.database import execute
from tests.support.producer import Producer, Reply
from tests.support.rabbitmq import RabbitMQ

TYPE = "create_flow_run_from_deployment"


@dataclass(frozen=True)
class Twin:
    """One of two deployments that are alike."""

    id: str
    name: str
    flow_id: str
    pool: str

    def replaced(self, text: str, by: "Twin") -> str:
        """A text about this one, as it would be about the other."""
        for name in ("id", "name", "flow_id", "pool"):
            text = text.replace(getattr(self, name), getattr(by, name))
        return text


class Deployments:
    """Two deployments for each set-up: Prefect's API is asked for runs of one, the worker of the
    other.
    """

    def __init__(self, both: Both, shared: Shared) -> None:
        self.both, self._shared = both, shared
        self._twins: dict[str, tuple[Twin, Twin]] = {}

    async def twins(self, setup: str) -> tuple[Twin, Twin]:
        """Ours and theirs."""
        if setup not in self._twins:
            name = uuid4().hex[:8]
            ours, theirs = [await self.new(SETUPS[setup], f"{side}-{name}") for side in ("ours", "theirs")]
            self._twins[setup] = ours, theirs
        return self._twins[setup]

    async def new(self, setup: Setup, name: str) -> Twin:
        """A deployment of that name, of a flow and with a work pool of its own."""
        flow = await self.both.new_flow()
        fields: dict[str, Any] = {"name": name, "flow_id": flow, **setup.fields}
        if setup.template is not None:
            await self.both.post("/work_pools/", {"name": f"pool-{name}", "type": "process"})
            fields["work_pool_name"] = f"pool-{name}"
        flow_name = (await self.both.prefect("GET", f"/flows/{flow}")).json()["name"]
        deployment = (await self.both.post("/deployments/", fields))["id"]
        schema = f"'{_quoted(setup.schema)}'" if setup.schema is not None else "NULL"
        await self.execute(
            f"UPDATE deployment SET parameter_openapi_schema = {schema} WHERE id = '{deployment}'"
        )
        if setup.template is not None:
            template = f"base_job_template = '{_quoted(setup.template)}'"
            await self.execute(f"UPDATE work_pool SET {template} WHERE name = 'pool-{name}'")
        return Twin(deployment, f"{flow_name}/{name}", flow, f"pool-{name}")

    async def execute(self, statement: str) -> None:
        """Change the database that both use, behind their backs."""
        url = self._shared.database_url
        if not url.startswith("sqlite"):
            await execute(url, statement)
            return
        with closing(sqlite3.connect(url.partition(":///")[2], timeout=60)) as connection:
            connection.execute(statement)
            connection.commit()

    async def assert_equal(self, case: DeploymentCase, *, by_name: bool = False) -> Reply:
        """Send a request to each, which need the same answer; returns ours."""
        ours, theirs = await self.twins(case.setup)
        which = {"deployment_name": ours.name} if by_name else {"deployment_id": ours.id}
        reply = await self.both.producer.request({**case.body, **which}, headers=case.headers, type=TYPE)
        response = await self.both.prefect(
            "POST", f"/deployments/{theirs.id}/create_flow_run", json=case.body, headers=case.headers
        )
        now = datetime.now(UTC)
        our_body = json.loads(ours.replaced(json.dumps(reply.body), theirs))
        if "request_body" in our_body:
            our_body["request_body"] = {
                name: value for name, value in our_body["request_body"].items() if name not in which
            }
        their_body = response.json()
        assert (response.status_code, response.text[:500]) == (reply.status, response.text[:500]), reply.body
        if reply.status < 300:
            await self._assert_queue(reply.body)
        for body in (our_body, their_body):
            _make_comparable(body)
        found = list(differences(comparable(their_body, now), comparable(our_body, now)))
        assert not found, "\n".join(found)
        return reply

    async def _assert_queue(self, record: Any) -> None:
        """The ids of queue and pool are of those that the record names."""
        if record["work_queue_id"] is None:
            assert record["work_pool_id"] is record["work_pool_name"] is None
            return
        path = f"/work_pools/{record['work_pool_name']}/queues/{record['work_queue_name']}"
        queue = (await self.both.prefect("GET", path)).json()
        assert (queue["id"], queue["work_pool_id"]) == (record["work_queue_id"], record["work_pool_id"])


def _quoted(value: Any) -> str:
    return json.dumps(value).replace("'", "''")


def _make_comparable(body: Any) -> None:
    """Ids of queues, which are checked by their names; and tags, which are a set in Prefect."""
    for name in ("work_queue_id", "work_pool_id"):
        if body.get(name) is not None:
            body[name] = f"ID of {name}"
    if isinstance(body.get("tags"), list):
        body["tags"] = sorted(body["tags"])


@pytest.fixture
async def both(shared: Shared, rabbitmq: RabbitMQ) -> AsyncIterator[Both]:
    async with (
        httpx.AsyncClient(base_url=shared.server.api, timeout=60) as http,
        Producer(rabbitmq.url, shared.queue) as producer,
    ):
        yield Both(http, producer)


@pytest.fixture
async def deployments(both: Both, shared: Shared) -> Deployments:
    for name, value in VARIABLES.items():
        # There already, where another test has made it.
        await both.prefect("POST", "/variables/", json={"name": name, "value": value})
    return Deployments(both, shared)


async def test_each_case_is_answered_and_served_as_prefect_does(deployments: Deployments) -> None:
    wrong: list[str] = []
    for number, case in enumerate(CASES):
        try:
            reply = await deployments.assert_equal(case, by_name=number % 2 == 0)
            if reply.status < 300:
                assert_served(reply, await deployments.both.served(reply.body["id"]))
        except AssertionError as error:
            wrong.append(f"{case.name}: {str(error)[:1500]}")
    assert not wrong, f"{len(wrong)} of {len(CASES)} cases differ\n\n" + "\n\n".join(wrong)
    print(f"{len(CASES)} cases, all equal")
