"""The part of ``doctor`` for the broker: does it answer, accept the login, grant the rights and
have the queues.
"""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import AMQPError
from aiormq.exceptions import ChannelAccessRefused

from worker.amqp.watch import WatchedConnection
from worker.broker.connection import (
    BrokerRefused,
    BrokerUnavailable,
    PublishersBlocked,
    TLSRefused,
    close_quietly,
    connect,
    unless_blocked,
)
from worker.broker.declaring import NothingThere, TopologyMismatch, declaring
from worker.broker.topology import Topology
from worker.observability.redaction import redact
from worker.operate.doctor.finding import Finding, Verdict, ok, problem, warning
from worker.settings import Settings

# The first version with at-least-once dead-lettering of quorum queues.
OLDEST_RABBITMQ = (3, 10)
# Longest wait for a confirm, in seconds. It comes within milliseconds.
PUBLISH_TIMEOUT = 10.0
# The first entry that fits the error counts.
_ADVICE = {
    BrokerUnavailable: "Start it, or set WORKER_AMQP_URL to where it is.",
    TLSRefused: "Check the host, cafile, certfile and keyfile in WORKER_AMQP_URL.",
    BrokerRefused: "Check the user, the password and the vhost in WORKER_AMQP_URL.",
}
_MISSING = (
    "does not stand yet",
    "A worker declares it at its start. If its user may not, run 'flow-run-worker topology declare' as a "
    "user who may.",
)

_NOT_OURS = (
    "does not stand yet",
    "WORKER_BINDINGS names it: others declare it. A worker binds its queue to it as soon as it stands.",
)


async def examine_broker(settings: Settings) -> AsyncIterator[Finding]:
    """Examine the broker. Declares nothing, and takes no message."""
    started = monotonic()
    try:
        connection = await connect(
            settings.amqp_url, name="flow-run-worker doctor", connection_class=WatchedConnection
        )
    except (BrokerUnavailable, BrokerRefused) as error:
        advice = next(advice for kind, advice in _ADVICE.items() if isinstance(error, kind))
        yield problem("broker", str(error), advice)
        return
    try:
        yield _version(connection, settings, (monotonic() - started) * 1000)
        topology = Topology.of(settings.queue_names)
        waiting: int | None = None
        stands: set[str] = set()
        for queue in topology.queues:
            finding, count = await _queue(connection, topology, queue)
            if count is not None:
                stands.add(queue)
            if queue == topology.queue:
                waiting = count
            elif queue == topology.dead_letter_queue and count and finding.verdict is Verdict.ok:
                finding = warning(
                    finding.what,
                    finding.detail,
                    "Requests were refused: 'flow-run-worker dead-letters list'.",
                )
            yield finding
        if not topology.events:
            async for finding in _others_events(connection, topology):
                yield finding
        if not topology.states:
            async for finding in _others_states(connection, topology):
                yield finding
        for exchange in topology.exchanges:
            yield await _exchange(connection, exchange)
        for each in topology.bindings:
            yield await _exchange(connection, each.exchange, _NOT_OURS)
        if waiting is not None:
            yield await _read_permission(connection, topology.queue, waiting)
        for what, queue in (("outbox", topology.events_queue), ("cursor", topology.cursor_queue)):
            if queue in stands:
                yield await _consume_permission(connection, what, queue)
        yield await _write_permission(connection)
    finally:
        await close_quietly(connection)


def _version(connection: aio_pika.Connection, settings: Settings, milliseconds: float) -> Finding:
    assert connection.transport is not None
    properties = connection.transport.connection.server_properties
    product, version = _text(properties.get("product")), _text(properties.get("version"))
    detail = f"{product} {version} at {redact(settings.amqp_url)}, connected in {milliseconds:.0f} ms"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if product == "RabbitMQ" and numbers < OLDEST_RABBITMQ:
        return problem("broker", detail, "The worker's queues need RabbitMQ 3.10 or newer.")
    return ok("broker", detail)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


async def _queue(
    connection: aio_pika.Connection, topology: Topology, queue: str
) -> tuple[Finding, int | None]:
    """Whether a queue is as it should be, and its number of ready messages."""
    what = f"queue {queue}"
    channel = await connection.channel()
    try:
        with declaring(f"queue '{queue}'"):
            declared = (await channel.get_queue(queue)).declaration_result
    except NothingThere:
        return warning(what, *_MISSING), None
    except (BrokerUnavailable, TopologyMismatch) as error:
        return problem(what, str(error)), None
    count = declared.message_count or 0
    detail = f"{count} ready, {declared.consumer_count or 0} consumer(s)"
    try:
        # Declaring an existing queue only compares its arguments.
        await topology.declare_queue(channel, queue)
    except (BrokerUnavailable, TopologyMismatch) as error:
        return problem(
            what, str(error), "'flow-run-worker topology show' prints the right properties."
        ), count
    except ChannelAccessRefused:
        return ok(what, f"{detail}; this user may not see its arguments"), count
    await channel.close()
    return ok(what, f"{detail}; its arguments are as the worker declares them"), count


async def _others_events(connection: aio_pika.Connection, topology: Topology) -> AsyncIterator[Finding]:
    """Warn of an outbox of other workers, if ``WORKER_PREFECT_API_URL`` is not set here."""
    channel = await connection.channel()
    try:
        outbox = (await channel.get_queue(topology.events_queue)).declaration_result
        await channel.close()
    except AMQPError:  # it does not exist, or this user may not see it
        return
    detail = (
        f"{topology.events_queue} stands, with {outbox.message_count or 0} ready and "
        f"{outbox.consumer_count or 0} consumer(s): other workers of this queue send events; with these "
        "settings a worker sends none, so its runs have no event in Prefect"
    )
    advice = (
        "Set WORKER_PREFECT_API_URL for every worker of the queue. If you want no events, set it for none, "
        f"and delete {topology.events_queue} once it is empty."
    )
    yield warning("events", detail, advice)


async def _others_states(connection: aio_pika.Connection, topology: Topology) -> AsyncIterator[Finding]:
    """Warn of states that other workers publish, if ``WORKER_STATES`` is off here."""
    channel = await connection.channel()
    try:
        cursor = (await channel.get_queue(topology.cursor_queue)).declaration_result
        await channel.close()
    except AMQPError:  # it does not exist, or this user may not see it
        return
    detail = (
        f"{topology.cursor_queue} stands, with {cursor.consumer_count or 0} consumer(s): other workers of "
        "this queue tell states; with these settings a worker answers no read of a run"
    )
    advice = (
        "Set WORKER_STATES to the same for every worker of the queue. If it is off for all, delete "
        f"{topology.cursor_queue} and the exchange {topology.states_exchange}."
    )
    yield warning("states", detail, advice)


async def _exchange(
    connection: aio_pika.Connection, exchange: str, missing: tuple[str, str] = _MISSING
) -> Finding:
    channel = await connection.channel()
    try:
        with declaring(f"exchange '{exchange}'"):
            await channel.get_exchange(exchange)
    except NothingThere:
        return warning(f"exchange {exchange}", *missing)
    await channel.close()
    return ok(f"exchange {exchange}", "stands")


async def _read_permission(connection: aio_pika.Connection, queue: str, waiting: int) -> Finding:
    if waiting:
        return ok("read permission", "not tried: requests wait, and the try would take one")
    channel = await connection.channel()
    try:
        taken = await (await channel.get_queue(queue, ensure=False)).get(fail=False)
        if taken is not None:  # it arrived just now
            await taken.nack(requeue=True)
    except ChannelAccessRefused as error:
        return problem("read permission", str(error), f"Grant the worker's user read on '{queue}'.")
    await channel.close()
    return ok("read permission", f"may consume from {queue}")


async def _consume_permission(connection: aio_pika.Connection, what: str, queue: str) -> Finding:
    """Consume from a queue, behind its active consumer, and return any message. ``basic.get`` is
    not allowed on a queue with a single active consumer.
    """
    channel = await connection.channel()
    await channel.set_qos(1)
    try:
        consumed = await channel.get_queue(queue, ensure=False)
        await consumed.cancel(await consumed.consume(_give_back))
    except ChannelAccessRefused as error:
        return problem(what, str(error), f"Grant the worker's user read on '{queue}'.")
    await channel.close()
    return ok(what, f"may consume from {queue}")


async def _give_back(message: AbstractIncomingMessage) -> None:
    await message.nack(requeue=True)


async def _write_permission(connection: WatchedConnection) -> Finding:
    """Publish to a queue that doesn't exist: the message is returned or refused. During an alarm
    the broker only reports that publishing is blocked.
    """
    channel = await connection.channel()

    async def publish() -> None:
        message = aio_pika.Message(b"")
        await channel.default_exchange.publish(message, f"flow-run-worker-doctor-{uuid4()}")
        # During an alarm the broker may accept the message, but then answers no more.
        await channel.close()

    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT):
            await unless_blocked(connection.frames, publish())
    except PublishersBlocked as error:
        advice = (
            "No request is answered until it ends: give the broker memory or disk "
            "('rabbitmq-diagnostics alarms' there says which), or see who fills it."
        )
        return problem("alarm", str(error), advice)
    except TimeoutError:
        told = f"the broker has confirmed no publication within {PUBLISH_TIMEOUT:g} s"
        return problem("write permission", told, "Look at the broker's log.")
    except AMQPError as error:
        advice = "Grant the worker's user write on 'amq.default', the exchange of replies and dead letters."
        return problem("write permission", str(error), advice)
    return ok("write permission", "may publish replies and dead letters")
