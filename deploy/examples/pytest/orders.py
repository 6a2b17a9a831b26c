"""A producer: each order starts a run of a deployment."""

from collections.abc import Sequence
from datetime import datetime

from flow_run_worker.client import ClientError, FlowRunClient, FlowRunRefused
from flow_run_worker.client.sync import FlowRunClient as BlockingClient

DEPLOYMENT = "invoices/nightly"
URL = "amqp://guest:guest@localhost:5672/"

client = FlowRunClient(URL, timeout=5)


class WrongOrder(Exception):
    """The order can't be placed."""


class TryLater(Exception):
    """The order was perhaps not placed. Placing it again is safe."""


async def place(order: int, *, start: datetime | None = None) -> str:
    """Place an order once. Returns its run's id."""
    try:
        run = await client.run_deployment(
            DEPLOYMENT,
            scheduled_time=start,
            parameters={"order": order},
            idempotency_key=f"order-{order}",
            expires="timeout",
        )
    except FlowRunRefused as refused:
        raise WrongOrder(str(refused)) from refused
    except ClientError as error:
        raise TryLater(str(error)) from error
    return str(run.id)


async def place_and_wait(order: int) -> bool:
    """Place an order, and wait for its end. Returns whether it succeeded."""
    run = await client.run_deployment(
        DEPLOYMENT, parameters={"order": order}, idempotency_key=f"order-{order}", wait=600
    )
    return run.state_name == "Completed"


async def place_all(orders: Sequence[int]) -> list[int]:
    """Place many orders. Returns those that failed."""
    requests = (
        {"deployment_name": DEPLOYMENT, "parameters": {"order": order}, "idempotency_key": f"order-{order}"}
        for order in orders
    )
    return [orders[each.index] async for each in client.create_many(requests) if each.error is not None]


def remind(flow_id: str) -> str:
    """Start a flow that has no deployment, from a script. Returns the run's name."""
    with BlockingClient(URL) as blocking:
        return blocking.create_flow_run(flow_id, tags=["reminder"]).name
