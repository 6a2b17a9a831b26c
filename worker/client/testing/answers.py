"""Answers requests as a worker on a Prefect server's database does, from memory. No I/O."""

from datetime import datetime
from uuid import UUID

from ...contract.allowed import Allowed
from ...contract.decode import decode
from ...contract.errors import FlowRunNotFound, Refusal, StatesNotTold, encode_error
from ...contract.message import MAX_MESSAGE_SIZE, Message
from ...contract.record import encode_record
from ...contract.request import MAX_BODY_BYTES
from ...runs.completion import complete, missing
from ...runs.creation import NewRun, ReadRun, UnresolvedRun, requested_run
from ...runs.deployments.creation import no_deployment, run_of_deployment
from ..message import ClientMessage
from ..replies import Reply
from .checks import Checks
from .rows import Rows

_EVERYTHING = Allowed()
_CHECKS = Checks()


def answered(rows: Rows, message: ClientMessage, now: datetime) -> Reply:
    """The reply to a request. A new run is among the rows then.

    Args:
        now: stands for the worker's clock.
    """
    try:
        created, body = _served(rows, _received(message), now)
    except Refusal as refusal:
        return refused_with(refusal)
    return Reply(201 if created else 200, None, body)


def refused_with(refusal: Refusal) -> Reply:
    """The reply to a refused request."""
    return Reply(refusal.status, refusal.line, encode_error(refusal, MAX_MESSAGE_SIZE))


def _served(rows: Rows, message: Message, now: datetime) -> tuple[bool, bytes]:
    """Whether a run was created, and its record."""
    request = decode(message, max_body_bytes=MAX_BODY_BYTES)
    requested = requested_run(request, now, traceparent=request.traceparent)
    if isinstance(requested, ReadRun):
        if rows.states == "off":
            raise StatesNotTold
        run = rows.run(requested.run_id)
        if run is None:
            raise FlowRunNotFound(requested.run_id)
        return False, encode_record(run, now)
    new = requested if isinstance(requested, NewRun) else _resolved(rows, requested)
    lookups = rows.lookups(new)
    complete(new, lookups, _EVERYTHING)
    existing = rows.existing(new.run)
    if existing is not None:
        return False, encode_record(existing, now)
    if refusal := missing(new, lookups):
        raise refusal
    rows.put_run(new.run)
    return True, encode_record(new.run, now)


def _resolved(rows: Rows, unresolved: UnresolvedRun) -> NewRun:
    body = unresolved.request.body
    deployment = rows.deployment(body.deployment_id or body.deployment_name)
    if deployment is None:
        raise no_deployment(body, rows.meant(body.deployment_name))
    references = _CHECKS.blocks(deployment.job_template or "").values()
    blocks = {each for each in references if isinstance(each, UUID) and not rows.strict}
    return run_of_deployment(unresolved, deployment, variables=rows.variables, blocks=blocks, checks=_CHECKS)


def _received(message: ClientMessage) -> Message:
    """A message as the worker would get it."""
    properties = message.properties
    return Message(
        message.body,
        properties.headers or {},
        content_type=properties.content_type,
        reply_to=properties.reply_to,
        correlation_id=properties.correlation_id,
        message_id=properties.message_id,
        type=properties.message_type,
        delivery_mode=properties.delivery_mode,
    )
