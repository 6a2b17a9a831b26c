"""Plain messages in the database of a real Prefect server: each starts a run of the deployment."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractExchange
from pamqp.commands import Basic

from tests.conformance.prefect_server import VERSION, install
from tests.conformance.shared import Both, Shared, as_worker, quick_on
from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.processes import ServerProcess, wait_until
from tests.support.worker_process import ROOT, WorkerProcess

SCHEMA = {
    "type": "object",
    "properties": {"order": {"type": "integer"}, "note": {}},
    "required": ["order"],
}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(180):
        while not await condition():
            await asyncio.sleep(0.1)


@dataclass
class Place:
    """A deployment to be, an exchange of others, and workers of this test's queue."""

    both: Both
    url: str
    exchange: AbstractExchange
    flow: str
    start: Callable[..., WorkerProcess]

    @property
    def deployment(self) -> str:
        return f"{self.flow}/production"

    async def deploy(self, **fields: Any) -> str:
        flow = (await self.both.post("/flows/", {"name": self.flow}))["id"]
        made = await self.both.post(
            "/deployments/",
            {
                "name": "production",
                "flow_id": flow,
                "parameters": {"note": {"__prefect_kind": "json", "value": '["default"]'}},
                "parameter_openapi_schema": SCHEMA,
                "enforce_parameter_schema": True,
                **fields,
            },
        )
        return str(made["id"])

    async def send(self, body: Any, **properties: Any) -> bool:
        """Publish to the exchange, as a program that knows nothing of Prefect. False if the message
        reached no queue.
        """
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.exchange.publish(aio_pika.Message(raw, **properties), "order.created")
        return isinstance(answer, Basic.Ack)

    async def runs(self) -> list[Any]:
        """The deployment's runs, in the order of their creation."""
        found = await self.both.post(
            "/flow_runs/filter", {"flows": {"name": {"any_": [self.flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        )
        return list(found)

    async def parameters(self, count: int) -> list[Any]:
        """The parameters of the runs, once there are this many."""

        async def are_there() -> bool:
            return len(await self.runs()) >= count

        await until(are_there)
        found = [run["parameters"] for run in await self.runs()]
        assert len(found) == count, found
        return found


@pytest.fixture
async def place(shared: Shared, amqp_url: str, queue: str, start_worker: StartWorker) -> AsyncIterator[Place]:
    url = shared.database_url
    if not url.startswith("sqlite"):
        url = await asyncio.to_thread(as_worker, url)
    async with Both.at(shared, amqp_url) as both:
        both.producer.queue = queue
        exchange = await both.producer.channel.declare_exchange(f"shop-{uuid4().hex[:8]}", "topic")
        flow = f"ship-{uuid4().hex[:8]}"

        def start(**settings: Any) -> WorkerProcess:
            return start_worker(
                url,
                **{
                    "deployment": f"{flow}/production",
                    "bindings": f"{exchange.name}:order.*",
                    **settings,
                },
            )

        yield Place(both, url, exchange, flow, start)
        await exchange.delete()


async def test_messages_of_an_existing_exchange_start_runs(place: Place) -> None:
    deployment = await place.deploy()
    workers = [place.start(), place.start()]
    await place.send({"order": 1}, type="order.created", reply_to=place.both.producer.reply_to)
    await place.parameters(1)
    (run,) = await place.runs()
    assert run["deployment_id"] == deployment
    assert run["state_type"] == "SCHEDULED"
    assert run["parameters"] == {"order": 1, "note": ["default"]}
    # What describes a value in Prefect is data in a plain message.
    note = {"__prefect_kind": "workspace_variable", "variable_name": "secret"}
    await place.send({"order": 2, "note": note, "__prefect_kind": "json"})
    assert (await place.parameters(2))[1] == {"order": 2, "note": note, "__prefect_kind": "json"}
    # Sent again, and delivered again: one run.
    headers = {"cloudEvents:source": "/shop", "cloudEvents:id": "A-1", "cloudEvents:specversion": "1.0"}
    for attempt in range(3):
        await place.send({"order": 3}, message_id="3", content_type="application/json")
        trace = {"cloudEvents:traceparent": f"00-{attempt}"}
        await place.send({"order": 4}, headers=headers | trace, message_id=uuid4().hex)
    await place.send({"order": 5}, message_id="5")
    found = await place.parameters(5)
    assert sorted(each["order"] for each in found) == [1, 2, 3, 4, 5]
    # Refused ones are dead letters, with the reason, and the others go on.
    for body, properties in (
        ({"order": "many"}, {}),
        ([1], {}),
        (b"", {}),
        (b"\x80\x03}", {}),
        ({"order": 1, "note": "\0"}, {}),
        ({"order": 1, "note": "x" * 600_000}, {}),
        ({"order": 1}, {"content_type": "application/cloudevents+json"}),
        ({"order": 1}, {"content_encoding": "gzip"}),
    ):
        await place.send(body, **properties)
    letters = await place.both.producer.dead_letters(8)
    statuses = [each.headers["x-error-status"] for each in letters]
    assert sorted(statuses) == [400, 409, 415, 415, 422, 422, 422, 422]
    assert any("'many' is not of type 'integer'" in each.headers["x-error"] for each in letters)
    await place.send(b'{"order": 6, "note": NaN}')
    assert {"order": 6, "note": None} in await place.parameters(6)
    # Requests with a type are requests.
    reply = await place.both.producer.request(
        {"flow_id": (await place.runs())[0]["flow_id"]}, type="create_flow_run"
    )
    assert (reply.status, reply.body["deployment_id"]) == (201, None)
    reply = await place.both.producer.request(
        {"deployment_id": deployment, "parameters": {"order": 7}}, type="create_flow_run_from_deployment"
    )
    assert reply.status == 201
    assert len(place.both.producer.replies) == 2, "a plain message was answered"
    assert await place.both.producer.depth() == 0
    for worker in workers:
        assert worker.terminate() == 0


async def test_any_json_is_the_value_of_one_parameter(place: Place) -> None:
    await place.deploy(enforce_parameter_schema=False)
    place.start(deployment_parameter="order", deployment_replies="true")
    bodies = [[1, {"a": None}], "text", None, 4711, {"__prefect_kind": "json", "value": "1"}]
    for body in bodies:
        reply = await place.both.producer.request(json.dumps(body).encode())
        assert reply.status == 201
        assert reply.body["parameters"] == {"order": body, "note": ["default"]}
    reply = await place.both.producer.request(b"")
    assert reply.status == 422
    assert "The message has no body" in reply.headers["x-error"]


async def test_a_deployment_is_waited_for_and_nothing_is_refused(place: Place, amqp_url: str) -> None:
    producer = place.both.producer
    workers = [place.start(wait=False), place.start(wait=False)]
    for worker in workers:
        worker.wait_until_logged("deployment_missing")
    await until(lambda: place.send({"order": 1}, message_id="1"))
    for worker in workers:
        status, state = worker.readiness()
        assert status == 503
        assert f"There is no deployment '{place.deployment}'" in state["deployment"]
        assert worker.metric("flow_run_worker_dependency_up", dependency="deployment") == 0
    assert await producer.depth() == 1, "no delivery is taken, so none is counted"
    taken = await (await producer.channel.get_queue(producer.queue)).get()
    await taken.nack()  # as a worker that ends: the broker delivers it again

    async def are_ready() -> bool:
        return all(worker.readiness()[0] == 200 for worker in workers)

    async def is_unready(worker: WorkerProcess) -> bool:
        return worker.readiness()[0] == 503

    async def waits() -> bool:
        return await producer.depth() == 1

    async def found_existing(times: int) -> bool:
        found = (worker.metric("flow_run_worker_requests_total", outcome="existing") for worker in workers)
        return sum(filter(None, found)) == times

    settings = {"amqp_url": amqp_url, "database_url": place.url, "deployment": place.deployment}
    examined = await command("doctor", queue=producer.queue, **settings)
    assert examined.code == 1
    assert f"problem deployment: There is no deployment '{place.deployment}'" in examined.out
    for order in (1, 2, 3):
        deployment = await place.deploy()
        # With the deployment, Prefect has deleted its scheduled runs.
        assert [each["order"] for each in await place.parameters(1)] == [order]
        await until(are_ready)
        assert await place.send({"order": order}, message_id=str(order))
        await until(partial(found_existing, order))
        assert len(await place.runs()) == 1
        await place.both.prefect("DELETE", f"/deployments/{deployment}")
        # An idle worker sees it when its readiness is asked for, the others with a message.
        await until(lambda: is_unready(workers[0]))
        assert await place.send({"order": order + 1}, message_id=str(order + 1))
        await until(waits)
        await until(lambda: is_unready(workers[1]))
    assert await producer.depth(f"{producer.queue}.dead") == 0
    for worker in workers:
        assert worker.terminate() == 0
    assert await producer.depth() == 1


@quick_on("postgresql")
async def test_the_pages_example_runs(
    shared: Shared, amqp_url: str, queue: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Its two programs and its settings, with a flow's name and an exchange of this test."""
    page = (ROOT / "deploy/docs/plain-messages.md").read_text()
    ship, shop = re.findall(r"```python\n(.*?)```", page, re.S)
    assert ship == (ROOT / "deploy/examples/plain/ship.py").read_text()
    exported = dict(re.findall(r"^    export (WORKER_\w+)=(\S+)$", page, re.M))
    assert exported["WORKER_DEPLOYMENT"] == "ship/production"
    flow, orders = f"ship-{uuid4().hex[:8]}", f"orders-{uuid4().hex[:8]}"
    (tmp_path / "ship.py").write_text(ship.replace("@flow(", f"@flow(name='{flow}', "))
    (tmp_path / "shop.py").write_text(
        shop.replace("amqp://guest:guest@localhost:5672/", amqp_url).replace('"orders"', f'"{orders}"')
    )

    def shipped(log: Path, order: int) -> None:
        wait_until(lambda: f"shipping order {order}, express: False" in log.read_text(), f"order {order}")

    async def shop_runs() -> None:
        running = await asyncio.create_subprocess_exec(sys.executable, "shop.py", cwd=tmp_path)
        assert await running.wait() == 0

    await shop_runs()
    served = ServerProcess(
        [str(install(VERSION) / "python"), str(tmp_path / "ship.py")],
        tmp_path / "ship.log",
        env={**os.environ, **shared.server.environment},
    )
    url = shared.database_url
    try:
        start_worker(
            url if url.startswith("sqlite") else await asyncio.to_thread(as_worker, url),
            deployment=exported["WORKER_DEPLOYMENT"].replace("ship", flow, 1),
            bindings=exported["WORKER_BINDINGS"].replace("orders", orders),
            prefect_api_url=shared.server.api,
        )
        for _ in range(2):
            await shop_runs()
        log = tmp_path / "ship.log"
        for order in (1, 2, 3):
            await asyncio.to_thread(shipped, log, order)
        assert log.read_text().count("shipping order") == 3
    finally:
        served.stop()
