"""Runs of deployments: the same request to ``POST /api/deployments/{id}/create_flow_run`` and to a
worker on the same database, for two equal deployments.
"""

import asyncio
import json
import re
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from tests.conformance.comparison import comparable, differences
from tests.conformance.conftest import OTHER_LIMIT
from tests.conformance.deployment_cases import CASES, SETUPS, VARIABLES, DeploymentCase, Setup, kind, variable
from tests.conformance.shared import (
    Both,
    Shared,
    assert_served,
    deploy_greeting,
    quick_on,
    start_process_worker,
)
from tests.conformance.test_conformance import (
    GENERATED,
    json_values,
    label_values,
    objects,
    policies,
    states,
    texts,
)
from tests.support.command import command
from tests.support.database import execute
from tests.support.node import NodeProducer
from tests.support.producer import Reply
from worker.client import FlowRunClient, InvalidFlowRun, NotFound
from worker.client.sync import FlowRunClient as SyncClient
from worker.contract.deployment_request import CreateFlowRunFromDeployment
from worker.contract.record import FlowRunRecord
from worker.contract.request import MAX_PARAMETER_SIZE

TYPE = "create_flow_run_from_deployment"


@dataclass(frozen=True)
class Twin:
    """One of two equal deployments."""

    id: str
    name: str
    flow_id: str
    pool: str

    def replaced(self, text: str, by: "Twin") -> str:
        """The text with this deployment's ids and names replaced by the other's."""
        for name in ("id", "name", "flow_id", "pool"):
            text = text.replace(getattr(self, name), getattr(by, name))
        return text


class PrefectBroke(Exception):
    """Prefect answered 5xx, which we never do."""


class Deployments:
    """Two deployments for each set-up: Prefect's API gets requests for one, the worker for the
    other.
    """

    def __init__(self, both: Both, shared: Shared) -> None:
        self.both, self.database_url = both, shared.database_url
        self._twins: dict[str, tuple[Twin, Twin]] = {}
        self._queues: dict[tuple[str, str], tuple[str, str]] = {}
        self.broken = 0

    async def twins(self, setup: str) -> tuple[Twin, Twin]:
        """Our deployment and Prefect's."""
        if setup not in self._twins:
            name = uuid4().hex[:8]
            ours, theirs = [await self.new(SETUPS[setup], f"{side}-{name}") for side in ("ours", "theirs")]
            self._twins[setup] = ours, theirs
        return self._twins[setup]

    async def new(self, setup: Setup, name: str) -> Twin:
        """A deployment with this name, with a flow and a work pool of its own."""
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
        """Change the shared database directly."""
        url = self.database_url
        if not url.startswith("sqlite"):
            await execute(url, statement)
            return
        with closing(sqlite3.connect(url.partition(":///")[2], timeout=60)) as connection:
            connection.execute(statement)
            connection.commit()

    async def assert_equal(self, case: DeploymentCase, *, by_name: bool = False) -> Reply:
        """Send a request to each and assert equal answers; returns ours."""
        ours, theirs = await self.twins(case.setup)
        which = {"deployment_name": ours.name} if by_name else {"deployment_id": ours.id}
        reply = await self.both.producer.request({**case.body, **which}, headers=case.headers, type=TYPE)
        response = await self.both.prefect(
            "POST", f"/deployments/{theirs.id}/create_flow_run", json=case.body, headers=case.headers
        )
        if response.status_code >= 500:
            assert reply.status < 500
            raise PrefectBroke(response.text)
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

    async def request(self, body: dict[str, Any], **properties: Any) -> Reply:
        """Ask the worker for a run of a deployment."""
        return await self.both.producer.request(body, type=TYPE, **properties)

    async def _assert_queue(self, record: Any) -> None:
        """Assert that the ids of queue and pool match the names in the record."""
        if record["work_queue_id"] is None:
            assert record["work_pool_id"] is record["work_pool_name"] is None
            return
        names = record["work_pool_name"], record["work_queue_name"]
        if names not in self._queues:
            path = f"/work_pools/{names[0]}/queues/{names[1]}"
            queue = (await self.both.prefect("GET", path)).json()
            self._queues[names] = queue["id"], queue["work_pool_id"]
        assert self._queues[names] == (record["work_queue_id"], record["work_pool_id"])


def _quoted(value: Any) -> str:
    return json.dumps(value).replace("'", "''")


def _make_comparable(body: Any) -> None:
    """Replace the ids of queues by placeholders, and sort tags, which are a set in Prefect."""
    for name in ("work_queue_id", "work_pool_id"):
        if body.get(name) is not None:
            body[name] = f"ID of {name}"
    if isinstance(body.get("tags"), list):
        body["tags"] = sorted(body["tags"])


@pytest.fixture
async def both(shared: Shared, amqp_url: str) -> AsyncIterator[Both]:
    async with Both.at(shared, amqp_url) as both:
        yield both


@pytest.fixture
async def deployments(both: Both, shared: Shared) -> Deployments:
    for name, value in VARIABLES.items():
        # Another test may have made it already.
        await both.prefect("POST", "/variables/", json={"name": name, "value": value})
    return Deployments(both, shared)


async def test_each_case_is_answered_and_served_as_prefect_does(deployments: Deployments) -> None:
    """One test runs all cases, deployments concurrently, and reports each difference."""
    wrong: list[str] = []

    async def compare(setup: str) -> None:
        for number, case in enumerate(case for case in CASES if case.setup == setup):
            try:
                reply = await deployments.assert_equal(case, by_name=number % 2 == 0)
                if reply.status < 300:
                    assert_served(reply, await deployments.both.served(reply.body["id"]))
            except AssertionError as error:
                wrong.append(f"{case.name}: {str(error)[:1500]}")

    await asyncio.gather(*map(compare, SETUPS))
    assert not wrong, f"{len(wrong)} of {len(CASES)} cases differ\n\n" + "\n\n".join(wrong)
    print(f"{len(CASES)} cases, all equal")


kinds = st.recursive(
    json_values,
    lambda inner: (
        st.fixed_dictionaries(
            {"__prefect_kind": st.sampled_from(["none", "json", "workspace_variable", "other"])},
            optional={
                "value": inner | json_values.map(json.dumps),
                "variable_name": st.sampled_from([*VARIABLES, "missing"]) | inner,
            },
        )
        | st.dictionaries(st.text("abx", max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "state": states,
        "name": texts,
        "parameters": st.dictionaries(
            st.sampled_from(["x", "foo", "person", "maybe", "pair"]), kinds, max_size=3
        ),
        "enforce_parameter_schema": st.booleans() | st.none(),
        "context": objects,
        "empirical_policy": policies,
        "tags": st.lists(texts, max_size=3),
        "labels": st.dictionaries(texts, label_values, max_size=3),
        "job_variables": st.dictionaries(
            st.sampled_from(["image", "command", "replicas", "labels", "other"]), json_values, max_size=3
        ),
        "work_queue_name": st.sampled_from(["default", "generated"]),
        "keyed": st.just(True),
    },
)


@settings(
    max_examples=GENERATED // 4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(setup=st.sampled_from(["bare", "full", "schema", "person", "old", "required"]), request=requests)
async def test_generated_cases(deployments: Deployments, setup: str, request: dict[str, Any]) -> None:
    body = dict(request)
    if body.pop("keyed", False):
        body["idempotency_key"] = uuid4().hex
    try:
        await deployments.assert_equal(DeploymentCase(setup, body))
    except PrefectBroke:
        deployments.broken += 1
        assert deployments.broken <= GENERATED // 20, "Prefect breaks at so many that little is compared"


@pytest.mark.parametrize(
    ("setup", "body", "status", "told"),
    [
        ("bare", {"parameters": kind("json", value="[1]")}, 400, "They are not an object"),
        ("bare", {"parameters": {"p": variable([1])}}, 400, r"Variable '\[1\]' not found"),
        (
            "bare",
            {"parameters": {"p": kind("json", value='"\\u0000"')}},
            400,
            "p: Input should not contain NUL",
        ),
        ("bare", {"parameters": {"p": kind("json", value='"\\ud800"')}}, 400, "p: Input should not contain"),
        ("bare", {"parameters": {"p": kind("json", value="[" * 600 + "]" * 600)}}, 400, "nested too deep"),
        ("bare", {"parameters": {"p": kind("json", value="[" * 50_000)}}, 400, "nested too deep"),
        ("full", {"work_queue_name": "a/b"}, 422, "none may have /%&>< in its name"),
        ("not a schema", {"enforce_parameter_schema": True}, 422, "Invalid schema: 'nothing' is not valid"),
        ("circular job schema", {"job_variables": {"x": 1}}, 422, "circular references"),
    ],
)
async def test_where_prefect_breaks_we_refuse(
    deployments: Deployments, shared: Shared, setup: str, body: dict[str, Any], status: int, told: str
) -> None:
    ours, theirs = await deployments.twins(setup)
    try:
        response = await deployments.both.http.post(f"/deployments/{theirs.id}/create_flow_run", json=body)
    except httpx.TransportError:
        pass
    else:
        # SQLite stores NUL and PostgreSQL does not, so we refuse it on both.
        takes_nul = "NUL" in told and shared.database_url.startswith("sqlite")
        assert response.status_code >= 500 or takes_nul, response.text
    reply = await deployments.request({**body, "deployment_id": ours.id})
    assert reply.status == status, reply.body
    assert re.search(told, reply.headers["x-error"])


async def test_variables_make_no_parameters_too_large(deployments: Deployments, shared: Shared) -> None:
    """Prefect measures the parameters before it inserts the values."""
    ours, theirs = await deployments.twins("bare")
    name = f"large_{uuid4().hex}"
    await deployments.both.post("/variables/", {"name": name, "value": "v" * 4000})
    limit = OTHER_LIMIT if shared.database_url.startswith("sqlite") else MAX_PARAMETER_SIZE
    for count, status in ((limit // 4100, 201), (limit // 4000 + 1, 422)):
        body = {"parameters": {"p": [variable(name)] * count}}
        response = await deployments.both.prefect(
            "POST", f"/deployments/{theirs.id}/create_flow_run", json=body
        )
        assert response.status_code == 201
        reply = await deployments.request({**body, "deployment_id": ours.id})
        assert reply.status == status, reply.body
    # The deployment's own parameters, an empty object, are two bytes.
    assert f"less than {limit + 2:,} bytes" in reply.headers["x-error"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 + 2 }}",
        "{% if 1 %}a{% endif %}",
        "a{# b #}",
        "{{ a.b.c }}{# b #}c",
        "{% for a in range(3) %}{{ loop.index }}{% endfor %}",
        "{% for a in range(101) %}{% endfor %}",
        "{% for a in [1] %}{% for b in [1] %}{% for c in [1] %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in [] %}{% endfor %}" * 11,
        "{{ 1000000 | humanize_naturalsize }}, {{ 1000000 | humanize_intcomma }}",
        "{{ {'a': [1, '<']} | tojson }}",
        "{{ [1].append(2) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 / 0 }}",
        "{{ 1 | nothing }}",
        "{{ 'é' * 3 }}\n",
        "{{",
        "{% if %}",
        "a{# b",
        "{% include 'a' %}",
        kind("json", value='"{{ 7 }}"'),
        ["a"],
        {"a": 1},
    ],
)
async def test_a_template_is_rendered_as_prefect_does(deployments: Deployments, template: Any) -> None:
    ours, theirs = await deployments.twins("bare")
    body = {"parameters": {"p": kind("jinja", template=template)}}
    response = await deployments.both.prefect("POST", f"/deployments/{theirs.id}/create_flow_run", json=body)
    reply = await deployments.request({**body, "deployment_id": ours.id})
    assert reply.status == response.status_code, reply.body
    shown = response.json()
    told = "parameters" if reply.status == 201 else "detail"
    assert reply.body[told] == shown[told]


async def test_a_template_that_takes_too_much_is_refused(deployments: Deployments) -> None:
    ours, _ = await deployments.twins("bare")
    for template in ("{{ 'a' * 10 ** 9 }}", "{% for a in range(99) %}{{ 'a' * 10 ** 6 }}{% endfor %}"):
        body = {"parameters": {"p": kind("jinja", template=template)}, "deployment_id": ours.id}
        reply = await deployments.request(body)
        assert reply.status == 400
        assert "Invalid jinja: it" in reply.headers["x-error"]


async def test_a_deployment_that_is_not_there_is_named(deployments: Deployments) -> None:
    (ours, theirs), missing = await deployments.twins("bare"), str(uuid4())
    response = await deployments.both.prefect("POST", f"/deployments/{missing}/create_flow_run", json={})
    for which in (
        {"deployment_id": missing},
        {"deployment_name": f"{theirs.name}x"},
        {"deployment_name": "a/b"},
    ):
        reply = await deployments.request(which)
        assert (reply.status, reply.body) == (response.status_code, response.json())
        (value,) = which.values()
        assert value in reply.headers["x-error"]
    assert (await deployments.request({"deployment_name": ours.name})).status == 201


async def test_a_batch_of_both_kinds_makes_each_run_once(deployments: Deployments, shared: Shared) -> None:
    """Duplicates by key and by message, refusals, and new queues, of many deployments at once."""
    both = deployments.both
    twins = [*(await deployments.twins("bare")), *(await deployments.twins("full"))]
    of_flow = {"flow_id": twins[0].flow_id, "idempotency_key": "shared"}
    of_deployment = {"deployment_id": twins[0].id, "idempotency_key": "shared"}
    queue = f"queue-{uuid4()}"
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(40):
        keyed = {"deployment_name": twins[number % 4].name, "idempotency_key": f"key-{number}"}
        rounds += [
            (keyed, {"type": TYPE}),
            (keyed, {"type": TYPE}),
            ({"deployment_id": twins[1].id}, {"type": TYPE, "message_id": f"message-{number}"}),
            ({"deployment_id": twins[1].id}, {"type": TYPE, "message_id": f"message-{number}"}),
            (of_flow, {}) if number % 2 else (of_deployment, {"type": TYPE}),
            ({"deployment_id": str(uuid4())}, {"type": TYPE}),
            ({"flow_id": str(uuid4())}, {}),
            ({"deployment_id": twins[2].id, "work_queue_name": f"{queue}-{number % 3}"}, {"type": TYPE}),
        ]
    # Both copies of a message with an id have the same bytes, properties and correlation id.
    sent = [
        await both.producer.publish(
            body, **properties, correlation_id=f"{index // 2}" if "message_id" in properties else None
        )
        for index, (body, properties) in enumerate(rounds)
    ]
    async with asyncio.timeout(120):
        while sum(map(len, both.producer.replies.values())) < len(rounds):
            await asyncio.sleep(0.05)
    replies = [reply for each in dict.fromkeys(sent) for reply in both.producer.replies[each]]
    runs: dict[str, list[int]] = defaultdict(list)
    for reply in replies:
        if reply.status < 300:
            runs[reply.body["id"]].append(reply.status)
    assert sorted(Counter(reply.status for reply in replies).items()) == [
        (200, 40 + 40 + 39),
        (201, 40 + 40 + 1 + 40),
        (404, 40),
        (409, 40),
    ]
    assert all(sorted(statuses)[-1] == 201 and statuses.count(201) == 1 for statuses in runs.values())
    queues = (await both.prefect("POST", f"/work_pools/{twins[2].pool}/queues/filter", json={})).json()
    made = [each["name"] for each in queues if each["name"].startswith(queue)]
    assert sorted(made) == [f"{queue}-{number}" for number in range(3)]
    assert len({each["priority"] for each in queues}) == len(queues)


async def test_a_message_finds_its_run_whatever_has_become_of_the_deployment(
    deployments: Deployments,
) -> None:
    deployment = await deployments.new(SETUPS["bare"], f"gone-{uuid4().hex[:8]}")
    message = {"message_id": uuid4().hex, "correlation_id": uuid4().hex}
    request = {"deployment_name": deployment.name, "state": {"type": "PENDING"}}
    created = await deployments.request(request, **message)
    assert created.status == 201
    assert (await deployments.both.prefect("DELETE", f"/deployments/{deployment.id}")).is_success
    await deployments.both.producer.publish(request, type=TYPE, **message)
    replies = deployments.both.producer.replies[message["correlation_id"]]
    async with asyncio.timeout(60):
        while len(replies) < 2:
            await asyncio.sleep(0.02)
    assert (replies[1].status, replies[1].body["id"]) == (200, created.body["id"])
    assert (await deployments.request(request, message_id=uuid4().hex)).status == 404


@quick_on("postgresql")
async def test_a_pattern_without_end_stops_nobody_else(deployments: Deployments) -> None:
    """A small and a large request whose checks would never end, in one batch with others."""
    schema = {"type": "object", "properties": {"x": {"pattern": "^(a+)+$"}}}
    setup = Setup({"enforce_parameter_schema": True}, schema=schema)
    endless = await deployments.new(setup, f"endless-{uuid4().hex[:8]}")
    bare, _ = await deployments.twins("bare")
    endless_text, fitting = "a" * 60 + "!", "a" * 60
    bodies: list[dict[str, Any]] = [
        {"deployment_id": bare.id},
        {"deployment_id": endless.id, "parameters": {"x": endless_text}},
        {"deployment_id": endless.id, "parameters": {"x": endless_text, "y": "z" * 20_000}},
        {"deployment_id": endless.id, "parameters": {"x": fitting, "y": "z" * 20_000}},
        {"deployment_id": bare.id},
    ]
    sent = [await deployments.both.producer.publish(body, type=TYPE) for body in bodies]
    replies = await deployments.both.producer.replies_to(sent)
    assert [reply.status for reply in replies] == [201, 422, 422, 201, 201]
    assert "it takes more than 5 seconds" in replies[1].headers["x-error"]


@pytest.mark.parametrize("shared", ["postgresql"], indirect=True, scope="package")
async def test_without_the_right_to_make_a_queue_that_request_alone_is_refused(
    deployments: Deployments, amqp_url: str
) -> None:
    ours, _ = await deployments.twins("full")
    queue = f"queue-{uuid4()}"
    await deployments.execute("REVOKE INSERT ON work_queue FROM flow_runs_worker")
    try:
        sent = [
            await deployments.both.producer.publish(body, type=TYPE)
            for body in ({"deployment_id": ours.id}, {"deployment_id": ours.id, "work_queue_name": queue})
        ]
        served, refused = await deployments.both.producer.replies_to(sent)
        as_worker = make_url(deployments.database_url).set(username="flow_runs_worker")
        url = as_worker.render_as_string(hide_password=False)
        examined = await command("doctor", amqp_url=amqp_url, database_url=url)
    finally:
        await deployments.execute("GRANT INSERT ON work_queue TO flow_runs_worker")
    assert (served.status, refused.status) == (201, 404)
    assert "GRANT INSERT ON work_queue" in refused.headers["x-error"]
    assert 'GRANT INSERT ON work_queue TO "flow_runs_worker";' in examined.out
    again = await deployments.request({"deployment_id": ours.id, "work_queue_name": queue})
    assert (again.status, again.body["work_queue_name"]) == (201, queue)


async def test_a_run_that_no_pools_worker_sees_is_warned_of_once(
    deployments: Deployments, shared: Shared
) -> None:
    pooled = await deployments.new(SETUPS["full"], f"pooled-{uuid4().hex[:8]}")
    bare = await deployments.new(SETUPS["bare"], f"bare-{uuid4().hex[:8]}")
    scheduled = {"flow_id": pooled.flow_id, "deployment_id": pooled.id, "state": {"type": "SCHEDULED"}}
    for _ in range(2):
        assert (await deployments.request({"deployment_id": bare.id})).status == 201
        assert (await deployments.both.producer.request(scheduled)).status == 201
    assert (await deployments.request({"deployment_id": pooled.id})).status == 201
    assert (
        await deployments.both.producer.request({**scheduled, "work_pool_name": pooled.pool})
    ).status == 201
    lines = [line for line in shared.worker.output.splitlines() if "run_without_work_pool" in line]
    assert len([line for line in lines if bare.id in line and "the deployment has no work pool" in line]) == 1
    assert len([line for line in lines if pooled.id in line and "names no work_pool_name" in line]) == 1
    assert sum(pooled.id in line for line in lines) == 1


async def test_the_clients_and_the_command_line_start_a_deployment(
    deployments: Deployments, amqp_url: str
) -> None:
    ours, _ = await deployments.twins("full")
    queue = deployments.both.producer.queue
    async with FlowRunClient(amqp_url, queue=queue) as client:
        later = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)
        record = await client.run_deployment(
            ours.name,
            parameters={"foo": "client"},
            idempotency_key="client",
            scheduled_time=later,
            tags=["c"],
            job_variables={"replicas": 2},
            work_queue_name="default",
        )
        again = await client.run_deployment(UUID(ours.id), idempotency_key="client")
        with pytest.raises(NotFound, match="no/such"):
            await client.run_deployment("no/such")
        model = CreateFlowRunFromDeployment(deployment_name=ours.name, idempotency_key="client")
        assert (await client.request(model)).status == 200
        with pytest.raises(InvalidFlowRun, match=r"'two' is not"):
            await client.run_deployment(ours.name, job_variables={"replicas": "two"})
    assert again.id == record.id
    assert record.parameters == {"foo": "client", "deep": {"a": 1, "b": 2}}
    assert (record.next_scheduled_start_time, record.state_type) == (later, "SCHEDULED")
    assert (record.tags, record.job_variables) == (["b", "a", "c"], {"replicas": 2})
    assert (record.work_queue_name, record.work_pool_name) == ("default", ours.pool)

    def blocking() -> FlowRunRecord:
        with SyncClient(amqp_url, queue=queue) as client:
            return client.run_deployment(ours.name, idempotency_key="client")

    assert (await asyncio.to_thread(blocking)).id == record.id
    options = ("--deployment", ours.name, "--param", "n=1", "--param", "foo=a text", "--tag", "c")
    at = ("--scheduled-time", "2031-01-02T03:04:05Z")
    done = await command("create", *options, *at, amqp_url=amqp_url, queue=queue)
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown["parameters"] == {"foo": "a text", "deep": {"a": 1, "b": 2}, "n": 1}
    assert shown["next_scheduled_start_time"] == "2031-01-02T03:04:05Z"
    wrong = await command("create", "--deployment", "no/such", amqp_url=amqp_url, queue=queue)
    assert wrong.code == 1
    assert "There is no deployment 'no/such'." in wrong.err
    flow_name, name = ours.name.split("/")
    for near in (f"{flow_name}/{name[:-1]}", f"{flow_name.replace('-', '_')}/{name}"):
        wrong = await command("create", "--deployment", near, amqp_url=amqp_url, queue=queue)
        assert wrong.code == 1
        assert f"There is no deployment '{near}': did you mean '{ours.name}'?" in wrong.err
    both_kinds = await command(
        "create", "--deployment", ours.name, "--flow-id", ours.flow_id, amqp_url=amqp_url, queue=queue
    )
    assert both_kinds.code == 2
    assert "--flow-id" in both_kinds.err


@pytest.mark.parametrize("shared", ["postgresql"], indirect=True, scope="package")
@pytest.mark.skipif(not shutil.which("npm"), reason="no Node.js here")
async def test_a_deployment_that_node_starts_by_its_name_is_executed(
    both: Both, shared: Shared, amqp_url: str, tmp_path: Path
) -> None:
    name = await deploy_greeting(both, tmp_path)
    worker = start_process_worker(shared.server, name.partition("/")[2], tmp_path)
    try:
        node = await asyncio.to_thread(NodeProducer, tmp_path, amqp_url, shared.queue)
        arguments = (name, "key", '{"name": "Node"}')
        done = await asyncio.to_thread(node.create, *arguments)
        assert done.returncode == 0, done.stderr
        status, _, text = done.stdout.partition("\n")
        run_id = json.loads(text)["id"]
        assert (status, json.loads(text)["state_type"]) == ("201 flow_run", "SCHEDULED")
        run = await both.ended(run_id)
        assert run["state_type"] == "COMPLETED", worker.log_tail()
        async with asyncio.timeout(60):  # the flow's process sends them
            while True:
                logs = await both.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
                if "hello Node" in [log["message"] for log in logs]:
                    break
                await asyncio.sleep(0.3)
        again = await asyncio.to_thread(node.create, *arguments)
        assert again.stdout.startswith("200 flow_run")
    finally:
        worker.stop()
