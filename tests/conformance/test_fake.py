"""The fake in `worker.client.testing` beside a real worker on a Prefect server's database: the same
tests for both, and the same answer to every enumerated case.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID, uuid4

import httpx
import pytest
from aiormq import spec

from tests.conformance.cases import CASES
from tests.conformance.comparison import comparable, differences
from tests.conformance.deployment_cases import CASES as DEPLOYMENT_CASES
from tests.conformance.deployment_cases import SETUPS, VARIABLES
from tests.conformance.prefect_server import PrefectServer
from tests.conformance.shared import as_worker
from tests.conformance.test_deployments import Deployments
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess
from worker.client import Conflict, FlowRunClient, FlowRunRefused, InvalidFlowRun, NotFound, WaitTimedOut
from worker.client.message import ClientMessage
from worker.client.sync import FlowRunClient as BlockingClient
from worker.client.testing import FakeFlowRunClient
from worker.client.testing.sync import FakeFlowRunClient as BlockingFake
from worker.contract.kinds import FROM_DEPLOYMENT
from worker.contract.record import FlowRunRecord

SCHEMA = {
    "type": "object",
    "properties": {"order": {"type": "integer"}, "note": {"type": "string"}},
    "required": ["order"],
}
TEMPLATE = {
    "job_configuration": {"cpu": "{{ cpu }}"},
    "variables": {"type": "object", "properties": {"cpu": {"type": "integer"}}},
}


class Place(Protocol):
    """The flows, deployments and runs of a side."""

    async def flow(self, **fields: Any) -> str:
        """Add a flow; returns its id."""

    async def deployment(self, **fields: Any) -> tuple[str, str]:
        """Add a deployment; returns its name and its id."""

    async def variable(self, name: str, value: Any) -> None:
        """Add a variable."""

    async def set_state(self, run: FlowRunRecord, state: str) -> None:
        """Move a run to another state."""


class Fake:
    """The place of a fake."""

    def __init__(self, fake: FakeFlowRunClient | BlockingFake) -> None:
        self.fake = fake
        fake.strict = True  # as a Prefect server's database

    async def flow(self, **fields: Any) -> str:
        return str(self.fake.flow(f"flow-{uuid4()}", **fields))

    async def deployment(
        self, work_pool: str | None = None, template: dict[str, Any] | None = None, **fields: Any
    ) -> tuple[str, str]:
        if work_pool is not None:
            self.fake.work_pool(work_pool, template=template)
        name = f"flow-{uuid4().hex}/nightly"
        return name, str(self.fake.deployment(name, work_pool=work_pool, **fields))

    async def variable(self, name: str, value: Any) -> None:
        self.fake.variable(name, value)

    async def set_state(self, run: FlowRunRecord, state: str) -> None:
        self.fake.set_state(run, state)


class Prefect:
    """The place of a worker on a Prefect server's database."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        response = await self.http.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    async def prefect(self, method: str, path: str, **request: Any) -> httpx.Response:
        return await self.http.request(method, path, **request)

    async def flow(self, **fields: Any) -> str:
        return str((await self.post("/flows/", {"name": f"flow-{uuid4()}", **fields}))["id"])

    async def new_flow(self) -> str:
        return await self.flow()

    async def deployment(
        self,
        work_pool: str | None = None,
        template: dict[str, Any] | None = None,
        schema: dict[str, Any] | None = None,
        work_queue: str | None = None,
        **fields: Any,
    ) -> tuple[str, str]:
        if work_pool is not None:
            made = {"name": work_pool, "type": "process", "base_job_template": template or {}}
            await self.post("/work_pools/", made)
            fields |= {"work_pool_name": work_pool, "work_queue_name": work_queue or "default"}
        flow_name = f"flow-{uuid4().hex}"
        flow = (await self.post("/flows/", {"name": flow_name}))["id"]
        fields |= {"name": "nightly", "flow_id": flow, "parameter_openapi_schema": schema or {}}
        made = await self.post("/deployments/", fields)
        return f"{flow_name}/nightly", str(made["id"])

    async def variable(self, name: str, value: Any) -> None:
        await self.post("/variables/", {"name": name, "value": value})

    async def set_state(self, run: FlowRunRecord, state: str) -> None:
        body = {"state": {"type": state}, "force": True}
        assert (await self.post(f"/flow_runs/{run.id}/set_state", body))["status"] == "ACCEPT"


class Threaded:
    """A blocking client with the methods of an asynchronous one."""

    def __init__(self, client: BlockingClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        if name == "states":
            return self._states
        if name.endswith("_many"):
            return lambda *arguments, **options: self._many(method, *arguments, **options)
        return lambda *arguments, **options: asyncio.to_thread(method, *arguments, **options)

    async def _many(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        for each in await asyncio.to_thread(lambda: list(method(*arguments, **options))):
            yield each

    async def _states(self, binding: str) -> AsyncIterator[Any]:
        states = self._client.states(binding)
        try:
            while True:
                yield await asyncio.to_thread(next, states)
        finally:
            await asyncio.to_thread(states.close)


@dataclass
class Side:
    """A client, and its place."""

    client: Any
    place: Place


@dataclass(frozen=True)
class Running:
    """A worker on the Prefect server's database."""

    api: str
    amqp_url: str
    queue: str
    database_url: str


@pytest.fixture(scope="module")
def running(
    prefect: PrefectServer, rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    queue = f"fake-{uuid4().hex[:8]}.create"
    worker = WorkerProcess(
        tmp_path_factory.mktemp("fake") / "worker.log",
        {
            "WORKER_AMQP_URL": rabbitmq.url,
            "WORKER_DATABASE_URL": as_worker(prefect.database_url),
            "WORKER_QUEUE": queue,
            "WORKER_HTTP_PORT": "0",
            "WORKER_STATES": "all",
        },
    )
    try:
        worker.wait_until_logged("serving")
        yield Running(prefect.api, rabbitmq.url, queue, prefect.database_url)
    finally:
        worker.kill()


@pytest.fixture
async def real(running: Running) -> AsyncIterator[Prefect]:
    async with httpx.AsyncClient(base_url=running.api, timeout=60) as http:
        yield Prefect(http)


@pytest.fixture(params=["fake", "blocking fake", "real", "blocking real"])
def which(request: pytest.FixtureRequest) -> tuple[str, Running | None]:
    """The kind of client, and its worker."""
    is_fake = "fake" in request.param
    return request.param, None if is_fake else request.getfixturevalue("running")


@pytest.fixture
async def side(which: tuple[str, Running | None]) -> AsyncIterator[Side]:
    kind, at = which
    if kind == "fake":
        fake = FakeFlowRunClient()
        yield Side(fake, Fake(fake))
    elif kind == "blocking fake":
        with BlockingFake() as blocking_fake:
            yield Side(Threaded(blocking_fake), Fake(blocking_fake))
    else:
        assert at is not None
        async with httpx.AsyncClient(base_url=at.api, timeout=60) as http:
            if kind == "real":
                async with FlowRunClient(at.amqp_url, queue=at.queue) as client:
                    yield Side(client, Prefect(http))
            else:
                with BlockingClient(at.amqp_url, queue=at.queue) as blocking:
                    yield Side(Threaded(blocking), Prefect(http))


async def test_a_run_is_created(side: Side) -> None:
    flow_id = await side.place.flow(tags=["of the flow"], labels={"team": "blue"})
    run = await side.client.create_flow_run(flow_id, name="mine", tags=["a"], labels={"tier": 1})
    assert (str(run.flow_id), run.name, run.tags) == (flow_id, "mine", ["a"])
    assert run.labels == {"team": "blue", "tier": 1, "prefect.flow.id": flow_id}
    assert (run.state_type, run.state_name, run.run_count) == ("PENDING", "Pending", 0)
    assert run.id.version == 8  # of the message's fingerprint


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETED", "SCHEDULED"])
async def test_a_run_has_the_state_that_was_sent(side: Side, state: str) -> None:
    run = await side.client.create_flow_run(await side.place.flow(), state=state)
    assert (run.state.type, run.state_name) == (state, state.capitalize())
    assert (run.start_time is not None) == (state != "SCHEDULED")
    assert (run.end_time is not None) == (state == "COMPLETED")
    assert (run.next_scheduled_start_time is not None) == (state == "SCHEDULED")


async def test_a_key_makes_one_run(side: Side) -> None:
    flow_id, other = await side.place.flow(), await side.place.flow()
    first = await side.client.request({"flow_id": flow_id, "idempotency_key": "k", "name": "first"})
    second = await side.client.request({"flow_id": flow_id, "idempotency_key": "k", "name": "second"})
    third = await side.client.request({"flow_id": other, "idempotency_key": "k"})
    assert [first.status, second.status, third.status] == [201, 200, 201]
    assert second.record.id == first.record.id != third.record.id
    assert second.record.name == "first"
    assert first.created
    assert not second.created


async def test_an_empty_key_is_no_key(side: Side) -> None:
    body = {"flow_id": await side.place.flow(), "idempotency_key": ""}
    assert [(await side.client.request(body)).status for _ in range(2)] == [201, 201]


async def test_a_missing_flow_is_a_conflict(side: Side) -> None:
    flow_id = str(uuid4())
    with pytest.raises(Conflict) as refused:
        await side.client.create_flow_run(flow_id)
    assert str(refused.value) == f"409: There is no flow {flow_id}."
    assert refused.value.body["detail"].startswith("Data integrity conflict.")
    assert refused.value.maybe_sent


@pytest.mark.parametrize("check", [True, False])
async def test_a_wrong_request_is_refused(side: Side, check: bool) -> None:
    with pytest.raises(InvalidFlowRun) as refused:
        await side.client.request({"flow_id": "none", "tags": [1], "colour": "red"}, check=check)
    assert [each["loc"] for each in refused.value.errors] == [
        ["body", "flow_id"],
        ["body", "tags", 0],
        ["body", "colour"],
    ]
    assert refused.value.reason.startswith("body.flow_id: Input should be a valid UUID")
    assert refused.value.maybe_sent is not check


async def test_an_old_api_version_is_refused(side: Side) -> None:
    body, headers = {"flow_id": await side.place.flow()}, {"x-prefect-api-version": "0.7.0"}
    with pytest.raises(FlowRunRefused, match="400: The request specified API version"):
        await side.client.request(body, headers=headers, check=False)


async def test_an_automation_is_the_creator(side: Side) -> None:
    headers = {"prefect-automation-id": str(uuid4()), "prefect-automation-name": "bmlnaHRseQ=="}
    run = await side.client.create_flow_run(await side.place.flow(), headers=headers)
    assert (run.created_by.type, run.created_by.display_value) == ("AUTOMATION", "nightly")


async def test_each_of_many_has_its_outcome(side: Side) -> None:
    flow_id = await side.place.flow()
    name, _ = await side.place.deployment()
    requests = [
        {"flow_id": flow_id},
        {"flow_id": "none"},
        {"deployment_name": name},
        {"deployment_name": "no/such"},
        {"flow_id": str(uuid4())},
    ]
    outcomes = sorted([each async for each in side.client.create_many(requests)], key=lambda each: each.index)
    assert [each.status for each in outcomes] == [201, 422, 201, 404, 409]
    assert [type(each.error) for each in outcomes] == [
        *(type(None), InvalidFlowRun, type(None), NotFound, Conflict)
    ]
    assert [each.request for each in outcomes] == requests


async def test_publications_make_runs(side: Side) -> None:
    body = {"flow_id": await side.place.flow(), "idempotency_key": "k"}
    assert await side.client.publish(body)
    (outcome,) = [each async for each in side.client.publish_many([body])]
    assert outcome.message_id is not None
    assert (await side.client.request(body)).status == 200


async def test_a_deployment_is_run_by_its_name_and_its_id(side: Side) -> None:
    name, deployment_id = await side.place.deployment(
        parameters={"order": 1, "note": "its own"},
        tags=["nightly"],
        labels={"team": "blue"},
        version="1.0",
        work_pool=f"pool-{uuid4()}",
    )
    for which in (name, deployment_id, UUID(deployment_id)):
        run = await side.client.run_deployment(which, parameters={"order": 2}, tags=["a"], labels={"tier": 1})
        assert str(run.deployment_id) == deployment_id
        assert run.parameters == {"order": 2, "note": "its own"}
        assert sorted(run.tags) == ["a", "nightly"]
        assert run.labels["team"] == "blue"
        assert run.labels["tier"] == 1
        assert run.labels["prefect.deployment.id"] == deployment_id
        assert run.labels["prefect.flow.id"] == str(run.flow_id)
        assert run.deployment_version == "1.0"
        assert run.work_pool_name.startswith("pool-")
        assert run.work_queue_name == "default"
        assert run.state_type == "SCHEDULED"


async def test_a_run_of_a_deployment_may_start_later(side: Side) -> None:
    name, _ = await side.place.deployment()
    start = datetime.now(UTC).replace(microsecond=123456) + timedelta(days=1)
    run = await side.client.run_deployment(name, scheduled_time=start)
    assert run.next_scheduled_start_time == run.expected_start_time == start


async def test_a_deployments_key_makes_one_run(side: Side) -> None:
    name, deployment_id = await side.place.deployment()
    first = await side.client.run_deployment(name, idempotency_key="k")
    second = await side.client.request({"deployment_id": deployment_id, "idempotency_key": "k"})
    assert (second.status, second.record.id) == (200, first.id)


async def test_parameters_have_to_fit_the_schema(side: Side) -> None:
    name, _ = await side.place.deployment(schema=SCHEMA)
    await side.client.run_deployment(name, parameters={"order": 1})
    await side.client.run_deployment(name, enforce_parameter_schema=False)
    with pytest.raises(Conflict) as missing:
        await side.client.run_deployment(name)
    assert str(missing.value) == (
        "409: Error creating flow run: Validation failed. Failure reason: 'order' is a required property"
    )
    with pytest.raises(Conflict, match="Failure reason: 'x' is not of type 'integer'"):
        await side.client.run_deployment(name, parameters={"order": "x"})


async def test_a_missing_deployment_is_not_found(side: Side) -> None:
    with pytest.raises(NotFound) as refused:
        await side.client.run_deployment("no/such")
    assert str(refused.value) == "404: There is no deployment 'no/such'."
    assert refused.value.body == {"detail": "Deployment not found"}
    name, _ = await side.place.deployment()
    with pytest.raises(NotFound, match=f"There is no deployment '{name[:-1]}': did you mean '{name}'"):
        await side.client.run_deployment(name[:-1])


async def test_job_variables_have_to_fit_the_template(side: Side) -> None:
    name, _ = await side.place.deployment(work_pool=f"pool-{uuid4()}", template=TEMPLATE)
    run = await side.client.run_deployment(name, job_variables={"cpu": 2})
    assert run.job_variables == {"cpu": 2}
    with pytest.raises(InvalidFlowRun, match="for field 'cpu'"):
        await side.client.run_deployment(name, job_variables={"cpu": "many"})


async def test_a_missing_work_queue_is_made(side: Side) -> None:
    name, _ = await side.place.deployment(work_pool=f"pool-{uuid4()}")
    runs = [await side.client.run_deployment(name, work_queue_name="urgent") for _ in range(2)]
    assert runs[0].work_queue_name == "urgent"
    assert runs[0].work_queue_id == runs[1].work_queue_id
    with pytest.raises(InvalidFlowRun, match="There is no work queue 'a/b'"):
        await side.client.run_deployment(name, work_queue_name="a/b")
    without, _ = await side.place.deployment()
    with pytest.raises(FlowRunRefused, match="400: Cannot create flow run in work queue urgent"):
        await side.client.run_deployment(without, work_queue_name="urgent")


async def test_a_run_without_a_deployment_may_name_a_work_pool(side: Side) -> None:
    flow_id, pool = await side.place.flow(), f"pool-{uuid4()}"
    with pytest.raises(NotFound, match=f'Work pool "{pool}" not found'):
        await side.client.create_flow_run(flow_id, work_pool_name=pool)
    await side.place.deployment(work_pool=pool)
    run = await side.client.create_flow_run(flow_id, work_pool_name=pool)
    assert (run.work_pool_name, run.work_queue_name) == (pool, "default")
    with pytest.raises(NotFound, match=f"Work pool queue '{pool}/urgent' not found"):
        await side.client.create_flow_run(flow_id, work_pool_name=pool, work_queue_name="urgent")


async def test_parameters_may_be_variables_and_templates(side: Side) -> None:
    name, _ = await side.place.deployment()
    variable = f"variable_{uuid4().hex}"
    await side.place.variable(variable, {"a": [1]})
    run = await side.client.run_deployment(
        name,
        parameters={
            "a": {"__prefect_kind": "workspace_variable", "variable_name": variable},
            "b": {"__prefect_kind": "jinja", "template": "{{ 1 + 1 }}"},
        },
    )
    assert run.parameters == {"a": {"a": [1]}, "b": "2"}
    with pytest.raises(FlowRunRefused, match="400: Error hydrating flow run parameters: Variable 'no'"):
        await side.client.run_deployment(
            name, parameters={"a": {"__prefect_kind": "workspace_variable", "variable_name": "no"}}
        )


@pytest.mark.parametrize(
    "states", [["RUNNING", "COMPLETED"], ["FAILED"], ["RUNNING", "CRASHED", "SCHEDULED"]]
)
async def test_a_run_is_moved_on(side: Side, states: list[str]) -> None:
    body = {"flow_id": await side.place.flow(), "idempotency_key": "k", "state": "SCHEDULED"}
    run = (await side.client.request(body)).record
    for state in states:
        await side.place.set_state(run, state)
    now = (await side.client.request(body)).record
    assert (now.id, now.state_type, now.state.type) == (run.id, states[-1], states[-1])
    assert (now.state_name, now.state_id) == (now.state.name, now.state.id)
    assert now.state.state_details.flow_run_id == run.id
    assert now.run_count == states.count("RUNNING")
    assert now.start_time is not None
    assert (now.end_time is None) == (states[-1] == "SCHEDULED")
    assert (now.next_scheduled_start_time is None) == (states[-1] != "SCHEDULED")
    assert (now.total_run_time > timedelta(0)) == ("RUNNING" in states)
    assert now.updated > run.updated


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED"])
async def test_the_end_of_a_run_is_waited_for(side: Side, state: str) -> None:
    body = {"flow_id": await side.place.flow(), "idempotency_key": "k"}
    run = (await side.client.request(body)).record
    waiting = asyncio.create_task(side.client.wait_for_flow_run(run.id, timeout=120))
    creating = asyncio.create_task(side.client.create_flow_run(**body, wait=120))
    for each in ("RUNNING", state):
        await side.place.set_state(run, each)
    for record in await asyncio.gather(waiting, creating):
        assert (record.id, record.state_type) == (run.id, state)
    assert (await side.client.wait_for_flow_run(str(run.id))).state_type == state
    assert (await side.client.create_flow_run(**body, wait=True)).state_type == state


async def test_a_wait_has_a_limit(side: Side) -> None:
    with pytest.raises(WaitTimedOut) as over:
        await side.client.create_flow_run(await side.place.flow(), wait=0.05)
    assert over.value.maybe_sent
    assert over.value.record is not None
    run_id = over.value.record.id
    told = f"The run {run_id} has not ended within 0.05 seconds: it is Pending."
    assert str(over.value) == told
    with pytest.raises(WaitTimedOut):
        await side.client.wait_for_flow_run(run_id, timeout=0.01)
    missing = uuid4()
    with pytest.raises(NotFound, match=f"There is no flow run '{missing}'"):
        await side.client.wait_for_flow_run(missing)
    with pytest.raises(ValueError, match="badly formed"):
        await side.client.wait_for_flow_run("none")


async def test_states_are_followed(side: Side) -> None:
    name, deployment_id = await side.place.deployment()
    followed: list[tuple[Any, Any]] = []

    async def follow(binding: str) -> None:
        async with aclosing(side.client.states(binding)) as states:
            async for record in states:
                followed.append((record.id, record.state_name))
                if record.state_type == "CRASHED":
                    return

    following = asyncio.create_task(follow(f"*.*.{deployment_id}.#"))
    async with asyncio.timeout(120):
        while not followed:  # nothing else shows that it has begun
            await side.client.run_deployment(name)
            await asyncio.sleep(0.1)
        run = await side.client.run_deployment(name)
        for state in ("RUNNING", "CRASHED"):
            await side.place.set_state(run, state)
        await following
    assert [each for each in followed if each[0] == run.id] == [
        (run.id, each) for each in ("Scheduled", "Running", "Crashed")
    ]


# Every enumerated case.


@dataclass
class Answer:
    """A reply, with its reason."""

    status: int
    reason: str | None
    body: Any


async def fakes(fake: FakeFlowRunClient, body: bytes, headers: dict[str, str], type: str | None) -> Answer:
    properties = spec.Basic.Properties(
        headers=headers or None, content_type="application/json", message_type=type, reply_to="replies"
    )
    reply = fake._world.serve(ClientMessage(body, properties), 30, None)
    assert reply is not None
    return Answer(reply.status or 0, reply.reason, json.loads(reply.body))


async def workers(producer: Producer, body: bytes, headers: dict[str, str], type: str | None) -> Answer:
    reply = await producer.request(body, headers=headers or None, type=type)
    return Answer(reply.status, reply.headers.get("x-error"), reply.body)


def unequal(name: str, fake: Answer, worker: Answer) -> Iterator[str]:
    now = datetime.now(UTC)
    for answer in (fake.body, worker.body):
        for each in ("work_queue_id", "work_pool_id"):
            if answer.get(each) is not None:
                answer[each] = f"ID of {each}"
    if (fake.status, fake.reason) != (worker.status, worker.reason):
        yield f"{name}: fake {fake.status} {fake.reason}, worker {worker.status} {worker.reason}"
    else:
        for each in differences(comparable(worker.body, now), comparable(fake.body, now)):
            yield f"{name}: {each}"


async def test_each_case_of_the_endpoint_is_answered_as_by_the_worker(
    real: Prefect, running: Running
) -> None:
    flow_id = await real.flow()
    fake = FakeFlowRunClient()
    fake.strict = True
    fake.flow("flow", id=flow_id)
    wrong: list[str] = []
    async with Producer(running.amqp_url, running.queue) as producer:
        for case in CASES:
            body = case.body(flow_id)
            of_fake = await fakes(fake, body, case.headers, None)
            of_worker = await workers(producer, body, case.headers, None)
            wrong.extend(unequal(case.name, of_fake, of_worker))
    assert not wrong, f"{len(wrong)} differences\n" + "\n".join(wrong)


async def test_each_case_of_deployments_is_answered_as_by_the_worker(real: Prefect, running: Running) -> None:
    fake = FakeFlowRunClient()
    fake.strict = True
    wrong: list[str] = []
    for name, value in VARIABLES.items():
        fake.variable(name, value)
        await real.prefect("POST", "/variables/", json={"name": name, "value": value})
    async with Producer(running.amqp_url, running.queue) as producer:
        real.producer = producer  # type: ignore[attr-defined]
        deployments = Deployments(real, running)  # type: ignore[arg-type]
        for name, setup in SETUPS.items():
            if setup.schema is None:  # no request to Prefect's API makes such a deployment
                continue
            twin = await deployments.new(setup, uuid4().hex[:8])
            flow_name = twin.name.partition("/")[0]
            fields = dict(setup.fields)
            fake.flow(flow_name, id=twin.flow_id)
            if setup.template is not None:
                fake.work_pool(twin.pool, template=setup.template)
                fields["work_queue"] = fields.pop("work_queue_name", "default")
                fields["work_pool"] = twin.pool
            fake.deployment(twin.name, id=twin.id, schema=setup.schema, **fields)
            for number, case in enumerate(case for case in DEPLOYMENT_CASES if case.setup == name):
                which = {"deployment_name": twin.name} if number % 2 else {"deployment_id": twin.id}
                body, headers = json.dumps({**case.body, **which}).encode(), dict(case.headers or {})
                of_fake = await fakes(fake, body, headers, FROM_DEPLOYMENT.type)
                of_worker = await workers(producer, body, headers, FROM_DEPLOYMENT.type)
                wrong.extend(unequal(case.name, of_fake, of_worker))
    assert not wrong, f"{len(wrong)} differences\n" + "\n".join(wrong)
