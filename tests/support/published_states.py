"""States as a worker tells them, published by a test."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import aio_pika
from aiormq.exceptions import AMQPError

from tests.support.requests import request
from worker.contract.record import encode_record, encode_state
from worker.contract.states import STATE_MESSAGE, routing_key
from worker.contract.topology import QueueNames
from worker.runs.creation import uuid7


def new_run(state: str = "PENDING", **fields: Any) -> Any:
    """A run as a worker stores it."""
    return request(state={"type": state}, **fields).run


class Teller:
    """Publishes states at a broker, and answers reads from them, like a worker.

    Attributes:
        runs: the runs that are there, by id.
        reads: the number of reads that were answered.
        refuse: if set, the status, the reason and the body that answer each read.
    """

    def __init__(self, url: str, queue: str) -> None:
        self._url, self._names = url, QueueNames(queue, states=True)
        self.runs: dict[UUID, Any] = {}
        self.reads = 0
        self.refuse: tuple[int, str, dict[str, Any]] | None = None

    async def __aenter__(self) -> Self:
        self._connection = await aio_pika.connect(self._url)
        channel = await self._connection.channel()
        self._exchange = await channel.declare_exchange(
            self._names.states_exchange, aio_pika.ExchangeType.TOPIC, durable=True
        )
        queue = await channel.declare_queue(
            self._names.queue, durable=True, arguments=self._names.queues[self._names.queue]
        )
        self._channel = channel
        await queue.consume(self._answer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(AMQPError):
            await self._connection.close()

    def add(self, state: str = "PENDING", **fields: Any) -> UUID:
        """Make a run. Nobody is told."""
        run = new_run(state, **fields)
        self.runs[run.id] = run
        return run.id  # type: ignore[no-any-return]  # it is a UUID

    async def tell(self, run_id: UUID, state: str, *, times: int = 1, id_: UUID | None = None) -> UUID:
        """Move a run to a state, and tell it. Returns the state's id."""
        run = self.runs[run_id]
        made = new_run(state).state
        made.id, made.flow_run_id, made.timestamp = id_ or uuid7(datetime.now(UTC)), run_id, datetime.now(UTC)
        run.state, run.state_id, run.state_type, run.state_name = made, made.id, state, made.name
        message = aio_pika.Message(
            encode_state(run, made, datetime.now(UTC)),
            type=STATE_MESSAGE,
            message_id=str(made.id),
            timestamp=made.timestamp,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        for _ in range(times):
            key = routing_key(state, run.flow_id, run.deployment_id, run_id)
            await self._exchange.publish(message, key, mandatory=False)
        return made.id  # type: ignore[no-any-return]  # it is a UUID

    async def _answer(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        if message.type == "read_flow_run":
            self.reads += 1
            run = self.runs.get(UUID(json.loads(message.body)["id"]))
            status, reason, body = self.refuse or (404, "no run", {"detail": "Flow run not found"})
            answer = json.dumps(body).encode()
            if run is not None and self.refuse is None:
                status, answer = 200, encode_record(run, datetime.now(UTC))
        else:
            run_id = self.add(**json.loads(message.body).get("context", {}))
            status, reason, answer = 201, "", encode_record(self.runs[run_id], datetime.now(UTC))
        headers: dict[str, Any] = {"status": status}
        if status >= 400:
            headers["x-error"] = reason
        reply = aio_pika.Message(
            answer,
            type="flow_run" if status < 400 else "error",
            correlation_id=message.correlation_id,
            headers=headers,
            message_id=uuid4().hex,
        )
        await self._channel.default_exchange.publish(reply, message.reply_to or "", mandatory=False)
        await message.ack()
