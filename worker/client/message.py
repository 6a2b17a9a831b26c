"""A request as an AMQP message, which is identical each time it is published."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aiormq import spec
from pydantic import BaseModel
from pydantic_core import to_json

from ..contract.kinds import CREATE, FROM_DEPLOYMENT, KINDS, Model, names_deployment
from .errors import NotSerializable
from .options import Headers

Request = Mapping[str, Any] | Model | bytes

# The delivery mode of a message that outlives a restart of the broker.
PERSISTENT = 2

_TYPES = {kind.model: kind.type for kind in KINDS}


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A body with its properties, as aiormq publishes them. aio-pika's message costs 20 us more."""

    body: bytes
    properties: spec.Basic.Properties


def build_message(
    request: Request, headers: Headers, *, reply_to: str | None = None, type: str | None = None
) -> ClientMessage:
    """The message of a request, with a ``message_id`` of its own.

    Args:
        request: the body's fields, a model, or the raw JSON. Fields that are None are left out. A
            state may be just its type.
        reply_to: the reply queue. None: no reply is wanted.
        type: the AMQP property with the kind of request. A model sets its own. By default, fields
            without a flow and with a deployment ask for a run of that deployment.

    Raises:
        NotSerializable: the fields can't be written as JSON, or the headers as AMQP.
    """
    message_id = uuid4().hex
    try:
        message = ClientMessage(
            request if isinstance(request, bytes) else _json(request),
            spec.Basic.Properties(
                headers=dict(headers) if headers else None,
                content_type="application/json",
                delivery_mode=PERSISTENT,
                correlation_id=message_id if reply_to else None,
                reply_to=reply_to,
                message_id=message_id,
                message_type=_type(request, type),
            ),
        )
        if headers:
            message.properties.marshal()
    except Exception as error:  # a value of the caller's own type may raise anything
        raise NotSerializable(f"The request can't be written: {error}") from error
    return message


def _type(request: Request, wanted: str | None) -> str:
    for model, own in _TYPES.items():
        if isinstance(request, model):
            return own
    if wanted is None and isinstance(request, Mapping) and names_deployment(request):
        return FROM_DEPLOYMENT.type
    return wanted or CREATE.type


def _json(request: Mapping[str, Any] | BaseModel) -> bytes:
    if isinstance(request, BaseModel):
        request = request.model_dump(exclude_unset=True)
    if not isinstance(request, Mapping):
        kind = request.__class__.__name__
        raise TypeError(f"it has the type '{kind}', and has to be a mapping of fields, a model or bytes")
    fields = {name: value for name, value in request.items() if value is not None}
    if isinstance(state := fields.get("state"), str):
        fields["state"] = {"type": state.upper()}
    body = to_json(fields)
    # to_json writes numbers that JSON lacks as these words. A text may have them too.
    if b"NaN" in body or b"Infinity" in body:
        for place, number in _not_finite(json.loads(body)):
            raise ValueError(f"{place} is {number}, which JSON can't express")
    return body


def _not_finite(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """NaN and infinities in a value, each with its place, such as ``parameters.x.0``."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{place}.{key}".lstrip("."))
