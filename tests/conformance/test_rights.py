"""The rights of a worker's role in a Prefect server's database: all that it needs, and no more.

The other files of this folder run with this role.
"""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from tests.conformance.shared import PROCESS_TEMPLATE, Both, Shared
from tests.support.command import command
from tests.support.database import execute, fetch
from worker.store.rights import PREFECT, Right

pytestmark = pytest.mark.parametrize("shared", ["postgresql"], indirect=True)

ROLE = "flow_runs_worker"


def of_role(shared: Shared) -> str:
    return make_url(shared.database_url).set(username=ROLE).render_as_string(hide_password=False)


async def new_secret(both: Both) -> str:
    """Make a block document with a password; returns its id."""
    slug = (await both.prefect("GET", "/block_types/slug/secret")).json()
    of_type = {"block_schemas": {"block_type_id": {"any_": [slug["id"]]}}}
    (schema, *_) = await both.post("/block_schemas/filter", of_type)
    fields = {
        "name": f"password-{uuid4().hex[:8]}",
        "data": {"value": "hunter2"},
        "block_type_id": slug["id"],
        "block_schema_id": schema["id"],
    }
    return str((await both.post("/block_documents/", fields))["id"])


@pytest.fixture
async def both(shared: Shared, amqp_url: str) -> AsyncIterator[Both]:
    async with Both.at(shared, amqp_url) as both:
        yield both


async def test_the_role_reads_no_secret(both: Both, shared: Shared) -> None:
    await new_secret(both)
    owner, role = shared.database_url, of_role(shared)
    secrets = ("SELECT data FROM block_document", "SELECT value FROM configuration")
    for query in (*secrets, "SELECT * FROM block_document"):
        assert await fetch(owner, query)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await fetch(role, query)
    assert await fetch(role, "SELECT id FROM block_document")


async def test_the_role_has_the_rights_of_the_list_and_no_others(shared: Shared) -> None:
    role = of_role(shared)
    listed = {(right.table, right.privilege) for right in PREFECT if right.column is None}
    held = await fetch(
        role,
        "SELECT table_name, privilege_type FROM information_schema.table_privileges "
        f"WHERE grantee = '{ROLE}'",
    )
    assert {tuple(each.values()) for each in held} == listed
    columns = await fetch(
        role,
        "SELECT table_name, column_name FROM information_schema.column_privileges "
        f"WHERE grantee = '{ROLE}' AND table_name = 'block_document'",
    )
    assert [tuple(each.values()) for each in columns] == [("block_document", "id")]


async def test_doctor_is_content_with_the_role_and_not_with_its_owner(shared: Shared, amqp_url: str) -> None:
    settings = {"amqp_url": amqp_url, "queue": shared.queue, "database_kind": "prefect"}
    for url, warned in ((of_role(shared), False), (shared.database_url, True)):
        examined = await command("doctor", database_url=url, **settings)
        assert ("secrets of Prefect" in examined.out) is warned, examined.out
        assert "may read and insert" in examined.out


class Asked:
    """Requests that need a right, one for each right."""

    def __init__(self, both: Both) -> None:
        self._both = both

    async def prepare(self) -> None:
        post = self._both.post
        self.flow, self.pool = await self._both.new_flow(), f"pool-{uuid4().hex[:8]}"
        await post(
            "/work_pools/", {"name": self.pool, "type": "process", "base_job_template": PROCESS_TEMPLATE}
        )
        of_block = {
            "job_configuration": {"b": "{{ b }}"},
            "variables": {
                "properties": {
                    "b": {"default": {"$ref": {"block_document_id": await new_secret(self._both)}}}
                }
            },
        }
        self.block_pool = f"pool-{uuid4().hex[:8]}"
        await post(
            "/work_pools/", {"name": self.block_pool, "type": "process", "base_job_template": of_block}
        )
        self.variable = f"v_{uuid4().hex[:8]}"
        await post("/variables/", {"name": self.variable, "value": 1})
        self.plain = await self._deployment(self.pool)
        self.with_block = await self._deployment(self.block_pool)
        run = (await post("/flow_runs/", {"flow_id": self.flow}))["id"]
        task = {"flow_run_id": run, "task_key": "t", "dynamic_key": "0", "name": "t"}
        self.task = (await post("/task_runs/", task))["id"]
        self.key = uuid4().hex
        await post("/flow_runs/", {"flow_id": self.flow, "idempotency_key": self.key})

    async def _deployment(self, pool: str) -> str:
        fields = {"name": f"d-{uuid4().hex[:8]}", "flow_id": self.flow, "work_pool_name": pool}
        return str((await self._both.post("/deployments/", fields))["id"])

    def for_right(self, right: Right) -> tuple[dict[str, Any], bool]:
        """A body for this right, and whether it is for a run of a deployment."""
        match right.privilege, right.table:
            case _, "deployment":
                return {"deployment_id": self.plain}, True
            case "SELECT", "work_pool" | "work_queue":
                return {"flow_id": self.flow, "work_pool_name": self.pool}, False
            case "INSERT", "work_queue":
                return {"deployment_id": self.plain, "work_queue_name": uuid4().hex}, True
            case _, "variable":
                asks = {"__prefect_kind": "workspace_variable", "variable_name": self.variable}
                return {"deployment_id": self.plain, "parameters": {"p": asks}}, True
            case _, "block_document":
                return {"deployment_id": self.with_block}, True
            case _, "artifact":
                return {"flow_id": self.flow, "idempotency_key": self.key}, False
        return {"flow_id": self.flow, "parent_task_run_id": self.task}, False


@pytest.mark.parametrize(
    "right", [each for each in PREFECT if each.needed_by], ids=lambda right: right.where.replace(" ", "-")
)
async def test_a_right_that_is_missing_costs_those_that_need_it_alone(
    both: Both, shared: Shared, right: Right
) -> None:
    asked = Asked(both)
    await asked.prepare()
    body, of_deployment = asked.for_right(right)
    type_ = {"type": "create_flow_run_from_deployment"} if of_deployment else {}

    async def ask() -> tuple[int, str, list[int]]:
        good = [{"flow_id": asked.flow, "idempotency_key": uuid4().hex} for _ in range(20)]
        sent = [await both.producer.publish(each) for each in good[:10]]
        bad = await both.producer.publish(json.dumps(body).encode(), **type_)
        sent += [await both.producer.publish(each) for each in good[10:]]
        (answer,) = await both.producer.replies_to([bad])
        answers = await both.producer.replies_to(sent)
        return answer.status, answer.headers.get("x-error", ""), [each.status for each in answers]

    await execute(shared.database_url, f"REVOKE {right.where} FROM {ROLE}")
    try:
        status, reason, others = await ask()
        assert others == [201] * 20
        assert 400 <= status < 500
        assert f"GRANT {right.where}" in reason
    finally:
        await execute(shared.database_url, f"GRANT {right.where} TO {ROLE}")
    status, reason, others = await ask()
    assert others == [201] * 20
    assert status == (200 if right.table == "artifact" else 201), reason
