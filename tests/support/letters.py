"""Dead letters of nine causes and mixed sizes, as workers write them."""

import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from worker.amqp.properties import in_order, join, short_string
from worker.amqp.publication import Publication
from worker.amqp.transport import Connection
from worker.broker.connection import connected
from worker.broker.messages import dead_letter_copy
from worker.broker.publisher import Publisher
from worker.broker.topology import Topology
from worker.contract.message import Message

BEGIN = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
_NAMES = UUID("5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11")
# One letter in ``LARGE_EVERY`` has a body that is larger by ``LARGE`` bytes.
LARGE_EVERY, LARGE = 20, 100_000


def reason(number: int) -> tuple[int, str]:
    """The status and the reason of a letter. Nine causes take turns."""
    some = uuid5(_NAMES, str(number))
    return (
        (409, f"There is no flow {some}."),
        (422, f"body.flow_id: Input should be a valid UUID, invalid length: found {number} (and 2 more)"),
        (422, f"body.parameters.items.{number}.price: Input should be a valid number"),
        (413, f"The request body has {1_048_577 + number:,} bytes; the limit is 1,048,576 bytes."),
        (404, f"There is no deployment 'shop/order-{number}'"),
        (415, f"The content type 'text/{number}' is not supported: send application/json in UTF-8."),
        (
            409,
            "Error creating flow run: Validation failed for field 'order'. Failure reason: "
            f"{{'id': {number}}} is not of type 'integer'",
        ),
        (
            400,
            f"Cannot create flow run in work queue q-{number} because deployment {some} is not associated "
            "with a work pool. Please remove work_pool_name and try again.",
        ),
        (422, "tags: A run may have 100 tags at the most, and this one has more."),
    )[number % 9]


def letter(queue: str, number: int, *, large: int = LARGE) -> Publication:
    """The dead letter of a request: one a second from :data:`BEGIN` on."""
    body: dict[str, Any] = {
        "flow_id": str(_NAMES if number % 2 else uuid5(_NAMES, "other")),
        "idempotency_key": f"order-{number}",
        "parameters": {"items": "x" * (200 + (large if number % LARGE_EVERY == 0 else number % 4000))},
    }
    if number % 9 == 4:
        body = {"deployment_name": f"shop/order-{number}", "parameters": body["parameters"]}
    values = {"content_type": short_string("application/json"), "message_id": short_string(f"m-{number}")}
    values["timestamp"] = struct.pack(">Q", int(BEGIN.timestamp()))
    message = Message(json.dumps(body).encode(), {}, raw_properties=join(in_order(values)))
    status, error = reason(number)
    now = BEGIN + timedelta(seconds=number)
    return dead_letter_copy(message, queue=queue, status=status, error=error, now=now, frame_max=131_072)


async def fill(url: str, queue: str, numbers: Sequence[int], *, large: int = LARGE) -> None:
    """Declare the queues of a request queue, and put letters into its dead letters."""
    async with connected(url, name="letters", connection_class=Connection) as connection:
        await Topology(queue).declare(await connection.channel())
        publisher = Publisher(connection, await connection.channel(), bulk=True)
        for start in range(0, len(numbers), 200):
            part = [letter(f"{queue}.dead", each, large=large) for each in numbers[start : start + 200]]
            confirmation = await publisher.publish(part)
            await confirmation.wait()
            assert confirmation.all_taken
