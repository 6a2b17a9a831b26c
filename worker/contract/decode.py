"""Decodes a message into a request, or raises the refusal that Prefect's endpoint answers. Raises
nothing else.
"""

import base64
import json
import re
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from .errors import (
    MAX_ERRORS,
    ApiVersionRefused,
    BodyTooLarge,
    BodyUnreadable,
    Refusal,
    Unprocessable,
    UnsupportedMediaType,
    ValidationRefused,
)
from .immutable import immutable
from .kinds import CREATE, FROM_DEPLOYMENT, KINDS, Kind, kind_of, names_deployment
from .message import AMQP_1_0_BODY, Message, fingerprint
from .plain import PlainMessages, is_event
from .policy import CreatedBy
from .request import MAX_PARAMETER_SIZE, limit_to_check
from .validation import first_errors, located, unstorable, without_most_errors

MINIMUM_API_VERSION = (0, 8, 0)

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII
)
# At most nine digits: Python takes seconds to read a number of many thousands.
_API_VERSION = re.compile(r"\s*(\d{1,9})\.(\d{1,9})\.(\d{1,9})\s*", re.ASCII)

Body = TypeVar("Body", bound=BaseModel)

_adapters: dict[Kind, TypeAdapter[Any]] = {kind: TypeAdapter(kind.model) for kind in KINDS}
_uuid = TypeAdapter(UUID)
# Finds bodies that may hold a character that no database stores: NUL, or half a surrogate pair.
# It may be escaped, or in plain bytes. A zero byte also marks UTF-16 and UTF-32, which the standard
# library's parser reads.
_SUSPICIOUS = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\x00|\xed[\xa0-\xbf]")
# The name in an object of parameters that describe their value (``__prefect_kind``).
KIND = "__prefect_kind"
_KIND_BYTES = KIND.encode()
# Its characters may be escaped.
_ESCAPED = re.compile(r"\\u00[5-7]")
_ESCAPED_BYTES = re.compile(_ESCAPED.pattern.encode())
# FastAPI answers 400 when its parser's stack ends, near 1,000 levels. Ours allows fewer, so that
# the record can still be written, stored and sent back.
MAX_DEPTH = 500
# For :func:`json_depth`.
_RUNS = re.compile(rb"\[++|\]++")
_OPENING = ord("[")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_TAKEN_OFF = 8
# In bytes. A smaller body can't have enough errors to hold the event loop.
SMALL_BODY = 16 * 1024
# Levels of tables in the headers. The worker's own headers have none. Deeper ones could not be
# written into the dead letter.
MAX_HEADER_DEPTH = 100
# Content encodings that Kombu, Spring AMQP and HTTP clients give plain JSON.
_NO_ENCODING = frozenset(("", "utf-8", "utf8", "identity", "binary"))
_NO_TYPE = f"A request for a run of a deployment needs the type '{FROM_DEPLOYMENT.type}'"
_NO_DATA_SECTION = "The body is an AMQP 1.0 value or sequence: send the JSON as a data section (binary)"
# The properties that the contract uses. A request is refused if one of these can't be read.
_USED_PROPERTIES = frozenset(
    (
        *("properties", "content_type", "content_encoding", "reply_to", "correlation_id"),
        *("message_id", "type", "headers", "headers.x-prefect-api-version"),
        *("headers.prefect-automation-id", "headers.prefect-automation-name"),
    )
)


@immutable
class FlowRunRequest(Generic[Body]):
    """A decoded request.

    Attributes:
        size: of the message's body, in bytes.
        api_version: from ``x-prefect-api-version``.
        created_by: from the automation headers.
        run_id: the run's id, from the message's fingerprint, if the message has a ``message_id``
            but no idempotency key. Otherwise None.
        traceparent: the producer's W3C trace context; None if it is missing or invalid.
        deep: it may be nested too deeply for the quick parser: deeper than some 200 levels.
        max_parameter_size: as for :func:`decode`.
        described: some value may be described by its kind (:data:`KIND`).
        plain: of a plain message, so its parameters are data: nothing in them is hydrated.
    """

    body: Body
    kind: Kind = CREATE
    size: int = 0
    api_version: tuple[int, int, int] | None = None
    created_by: CreatedBy | None = None
    run_id: UUID | None = None
    traceparent: str | None = None
    deep: bool = False
    max_parameter_size: int = MAX_PARAMETER_SIZE
    described: bool = True
    plain: bool = False


def may_describe(text: str | bytes) -> bool:
    """False if no object in a JSON text has the name :data:`KIND`, not even with escapes."""
    if isinstance(text, bytes):
        return _KIND_BYTES in text or _ESCAPED_BYTES.search(text) is not None
    return KIND in text or _ESCAPED.search(text) is not None


def decode(
    message: Message,
    *,
    max_body_bytes: int,
    max_parameter_size: int = MAX_PARAMETER_SIZE,
    plain: PlainMessages | None = None,
) -> FlowRunRequest[Any]:
    """Decode a message.

    Args:
        max_body_bytes: a larger body is refused unread.
        max_parameter_size: limit for the parameters as JSON, in bytes; 0 for no limit.
        plain: how to read this plain message. None: it is a request.

    Raises:
        Refusal: with Prefect's status and error body. The checks have the order of its server.
    """
    if message.unreadable and (unreadable := _used_properties(plain) & message.unreadable.keys()):
        reasons = "; ".join(f"{name}: {message.unreadable[name]}" for name in sorted(unreadable))
        raise Unprocessable(f"The message's properties cannot be read: {reasons}")
    if message.headers and depth_exceeds(message.headers, MAX_HEADER_DEPTH):
        raise Unprocessable(f"The headers are nested deeper than {MAX_HEADER_DEPTH} levels.")
    _check_encoding(message)
    if plain is not None:
        plain.check(message)
    if len(message.body) > max_body_bytes:
        raise BodyTooLarge(len(message.body), max_body_bytes)
    api_version = _api_version(_header(message, "x-prefect-api-version"))
    try:
        content, deep = _parse(message.body)
    except Refusal as refusal:
        _check_compression(message)
        if message.type == AMQP_1_0_BODY:
            refusal.line = f"{_NO_DATA_SECTION} ({refusal.line})"
        raise
    errors: list[dict[str, Any]] = []
    created_by = _created_by(message, errors)
    limit = limit_to_check(len(message.body), max_parameter_size)
    if plain is None:
        kind, requested = kind_of(message.type), content
    else:
        kind, requested = FROM_DEPLOYMENT, plain.request(content, empty=not message.body)
    body = _validate(_adapters[kind], requested, len(message.body), limit, errors)
    if _SUSPICIOUS.search(message.body):
        errors.extend(unstorable(requested))
    if body is None or errors:
        refused = ValidationRefused(errors, content)
        if kind is CREATE and isinstance(content, dict) and names_deployment(content):
            refused.line = f"{_NO_TYPE} ({refused.line})"
        raise refused
    if plain is not None:
        run_id = _plain_run_id(message, plain)
    else:
        needs_id = kind.creates and message.message_id and not body.idempotency_key
        run_id = fingerprint(message) if needs_id else None
    traceparent = _traceparent(_header(message, "traceparent"))
    return FlowRunRequest(
        body,
        kind,
        len(message.body),
        api_version,
        created_by,
        run_id,
        traceparent,
        deep,
        max_parameter_size,
        # Only the standard library's parser reads UTF-16, so such a body counts as deep.
        plain is None and (deep or may_describe(message.body)),
        plain is not None,
    )


def decoded_size(body: bytes) -> int:
    """An upper estimate of a decoded body's size in bytes.

    A text takes up to four bytes per character. An empty list takes 64 with its place in another,
    an object with one entry 256 (CPython 3.11).
    """
    return 4 * len(body) + 72 * (body.count(b",") + body.count(b"[")) + 264 * body.count(b"{")


def _used_properties(plain: PlainMessages | None) -> frozenset[str]:
    return _USED_PROPERTIES if plain is None or plain.replies else _USED_PROPERTIES - {"reply_to"}


def _plain_run_id(message: Message, plain: PlainMessages) -> UUID | None:
    """The run's id. One event may go to several queues, each with a deployment of its own, so the
    deployment is part of it.
    """
    # An event's source and id name it. Its sender may write a new message_id with each try.
    if is_event(message.headers):
        return fingerprint(replace(message, message_id=None), plain.deployment)
    return fingerprint(message, plain.deployment) if message.message_id else None


def _check_encoding(message: Message) -> None:
    encoding, content_type = message.content_encoding, message.content_type
    if encoding and encoding.lower() not in _NO_ENCODING:
        raise UnsupportedMediaType(f"The content encoding '{encoding}' is not supported: send plain JSON.")
    if content_type and content_type != "application/json" and not _is_json(content_type):
        raise UnsupportedMediaType(
            f"The content type '{content_type}' is not supported: send application/json in UTF-8."
        )


def _check_compression(message: Message) -> None:
    """Kombu still labels a compressed body as plain JSON. The header ``compression`` names it."""
    compression = _header(message, "compression")
    if compression:
        raise UnsupportedMediaType(f"The compression '{compression}' is not supported: send plain JSON.")


def _is_json(content_type: str) -> bool:
    """True for a content type that FastAPI parses as JSON (``get_request_handler``). Parameters are
    ignored: by RFC 8259, section 11, JSON has no ``charset``.
    """
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and "/" not in subtype and (subtype == "json" or subtype.endswith("+json"))


def _header(message: Message, name: str) -> str | None:
    """A header as HTTP would carry it: text, or None."""
    value = message.headers.get(name) if message.headers else None
    if value is None:
        return None
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("latin-1")
    return str(value)


def _traceparent(header: str | None) -> str | None:
    """The trace context. An invalid one is ignored (W3C Trace Context, section 3.2)."""
    return header if header and _TRACEPARENT.fullmatch(header) else None


def _api_version(header: str | None) -> tuple[int, int, int] | None:
    """``EnforceMinimumAPIVersion``: three integers, at least the minimum version."""
    if not header:
        return None
    version = _API_VERSION.fullmatch(header)
    if version is None:
        raise ApiVersionRefused(
            "Invalid X-PREFECT-API-VERSION header format."
            f"Expected header in format 'x.y.z' but received {header}"
        )
    major, minor, patch = (int(part) for part in version.groups())
    if (major, minor, patch) < MINIMUM_API_VERSION:
        minimum = ".".join(str(part) for part in MINIMUM_API_VERSION)
        raise ApiVersionRefused(
            f"The request specified API version {header} but this server requires version {minimum} "
            "or higher."
        )
    return major, minor, patch


def _created_by(message: Message, errors: list[dict[str, Any]]) -> CreatedBy | None:
    """``get_created_by``: an automation, if both headers are there and its name is base64."""
    automation_id = _header(message, "prefect-automation-id")
    name = _header(message, "prefect-automation-name")
    if automation_id is None:
        return None
    try:
        creator = _uuid.validate_python(automation_id)
    except ValidationError as error:
        errors.extend(located(error, "header", "prefect-automation-id"))
        return None
    try:
        display_value = base64.b64decode((name or "").encode()).decode()
    except ValueError:
        return None
    if not display_value or "\0" in display_value:
        return None
    return CreatedBy(id=creator, type="AUTOMATION", display_value=display_value)


def _parse(body: bytes) -> tuple[Any, bool]:
    """Parse JSON as the standard library does for Prefect's server, first with a quick parser. True
    if only the standard library's could read it: it allows deeper nesting.
    """
    if not body:
        return None, False
    try:
        return from_json(body), False
    except ValueError:
        pass
    try:
        content = json.loads(body)
    except json.JSONDecodeError as error:
        invalid = {
            "type": "json_invalid",
            "loc": ["body", error.pos],
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        raise ValidationRefused([invalid], error.doc) from None
    except (ValueError, RecursionError):
        raise BodyUnreadable from None
    # The text of a body in UTF-16 or UTF-32 would have to be decoded first.
    if depth_exceeds(content, MAX_DEPTH) if b"\0" in body else json_depth(body) > MAX_DEPTH:
        raise BodyUnreadable
    return content, True


def json_depth(text: bytes) -> int:
    """The levels of lists and objects in valid JSON in UTF-8, at most. For a megabyte of brackets
    this takes a fifth of the time of :func:`depth_exceeds`.
    """
    # Without escaped backslashes and quotes, every second part between quotes is outside of texts.
    outside = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(outside).translate(_ONE_KIND, _NO_BRACKETS)
    # Take off the innermost levels, so that few runs of brackets are left.
    for taken_off in range(_TAKEN_OFF):
        if not brackets:
            return taken_off
        brackets = brackets.replace(b"[]", b"")
    depth = deepest = 0
    for run in _RUNS.findall(brackets):
        depth += len(run) if run[0] == _OPENING else -len(run)
        deepest = max(deepest, depth)
    return _TAKEN_OFF + deepest


def depth_exceeds(content: Any, limit: int) -> bool:
    """True if a value is nested deeper than ``limit`` levels."""
    level = [content]
    for _ in range(limit):
        lists = [each for each in level if isinstance(each, list)]
        objects = [each.values() for each in level if isinstance(each, dict)]
        level = [*chain.from_iterable(lists), *chain.from_iterable(objects)]
        if not level:
            return False
    return True


def _validate(
    model: TypeAdapter[Any], content: Any, size: int, limit: int, errors: list[dict[str, Any]]
) -> Any:
    if content is None:
        errors.append({"type": "missing", "loc": ["body"], "msg": "Field required", "input": None})
        return None
    content, more = without_most_errors(content) if size > SMALL_BODY else (content, False)
    try:
        body = model.validate_python(content, from_attributes=True, context=limit)
    except ValidationError as error:
        errors.extend(
            first_errors(error, content, model, limit, more=more)
            if more or error.error_count() > MAX_ERRORS
            else located(error, "body")
        )
        return None
    except UnicodeEncodeError:
        # An error's text has half a surrogate pair. ``unstorable`` reports where it is.
        return None
    except RecursionError:
        raise BodyUnreadable from None
    return body
