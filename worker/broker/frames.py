"""The frames of the hot path (AMQP 0-9-1, sections 2.3 and 4.2): a message that comes in, a
confirm, a message that goes out, an ack. They are read and written here field by field; all others
are left to pamqp, which makes an object of each.
"""

import struct
from typing import Any, Protocol

from worker.broker.properties import read_properties
from worker.broker.transport import BODY, END, HEAD, HEADER, METHOD

# Class and method in one number.
_PUBLISH, _RETURN, _DELIVER, _ACK, _NACK = ((60 << 16) + method for method in (40, 50, 60, 80, 120))
_METHOD = struct.Struct(">I")
_TAG_AND_BITS = struct.Struct(">QB")
# Of a content header: class, weight, size of the body.
_CONTENT = struct.Struct(">HHQ")
_CONTENT_CLASS = 60
_END = bytes((END,))
# Before the routing key: the method, two reserved octets, and the default exchange, whose name is
# empty.
_PUBLISH_HEAD = struct.pack(">IHB", _PUBLISH, 0, 0)
_MANDATORY, _NOT_MANDATORY = b"\x01", b"\x00"
_ACK_FRAME = struct.Struct(">BHIIQBB")
# Room that a frame takes besides its payload: type, channel, size, end.
FRAME_OVERHEAD = HEAD.size + len(_END)


class Incoming(Protocol):
    """Who is told what came in on a channel. Called from within a read of the socket: it must
    neither wait nor raise.
    """

    def delivered(self, tag: int, *, redelivered: bool, properties: Any, body: bytes) -> None:
        """A message came (``basic.deliver``)."""

    def returned(self, properties: Any) -> None:
        """A message of ours was routed to no queue (``basic.return``)."""

    def answered(self, tag: int, *, multiple: bool, refused: bool) -> None:
        """A publication was confirmed, or with ``refused`` was not (``basic.ack``, ``basic.nack``)."""


class ContentReader:
    """Puts the messages of one channel together from their frames: a method, a header, and none or
    more of the body.
    """

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        # The method's tag and its bits; None for a return.
        self._delivery: tuple[int, int] | None = None
        self._properties: Any = None
        self._parts: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        """Take one frame, unless it is none of these: then False is returned."""
        if kind == BODY:
            self._missing -= end - start
            if not self._missing and not self._parts:
                self._complete(buffer[start:end])
            else:
                self._parts.append(buffer[start:end])
                if not self._missing:
                    self._complete(b"".join(self._parts))
        elif kind == HEADER:
            _, _, self._missing = _CONTENT.unpack_from(buffer, start)
            self._properties = read_properties(buffer[start + _CONTENT.size : end])
            self._parts = []
            if not self._missing:
                self._complete(b"")
        elif kind == METHOD:
            (method,) = _METHOD.unpack_from(buffer, start)
            arguments = start + _METHOD.size
            if method == _DELIVER:
                consumer_tag = buffer[arguments]
                self._delivery = _TAG_AND_BITS.unpack_from(buffer, arguments + 1 + consumer_tag)
            elif method == _RETURN:
                self._delivery = None
            elif method in (_ACK, _NACK):
                tag, bits = _TAG_AND_BITS.unpack_from(buffer, arguments)
                self._incoming.answered(tag, multiple=bool(bits & 1), refused=method == _NACK)
            else:
                return False
        else:
            return False
        return True

    def _complete(self, body: bytes) -> None:
        properties, self._properties, self._parts = self._properties, None, []
        if self._delivery is None:
            self._incoming.returned(properties)
        else:
            tag, bits = self._delivery
            self._incoming.delivered(tag, redelivered=bool(bits & 1), properties=properties, body=body)


def publish(
    channel: int, queue: str, properties: bytes, body: bytes, *, mandatory: bool, frame_max: int
) -> bytes:
    """A ``basic.publish`` to a queue by its name, with its content.

    Args:
        properties: flags and properties, as they stand in a content header.

    Raises: ValueError: the queue's name is longer than 255 bytes, or the properties are larger than
        a frame.
    """
    routing_key = queue.encode()
    if len(routing_key) > 255:
        raise ValueError(f"the routing key has {len(routing_key)} bytes, and may have 255")
    header = _CONTENT.size + len(properties)
    if header + FRAME_OVERHEAD > frame_max:
        raise ValueError(f"the properties take {header + FRAME_OVERHEAD} bytes and a frame holds {frame_max}")
    frames = [
        HEAD.pack(METHOD, channel, len(_PUBLISH_HEAD) + 1 + len(routing_key) + 1),
        _PUBLISH_HEAD,
        bytes((len(routing_key),)),
        routing_key,
        _MANDATORY if mandatory else _NOT_MANDATORY,
        _END,
        HEAD.pack(HEADER, channel, header),
        _CONTENT.pack(_CONTENT_CLASS, 0, len(body)),
        properties,
        _END,
    ]
    step = frame_max - FRAME_OVERHEAD
    for start in range(0, len(body), step):
        part = body[start : start + step]
        frames += (HEAD.pack(BODY, channel, len(part)), part, _END)
    return b"".join(frames)


def acknowledge(channel: int, tag: int, *, multiple: bool) -> bytes:
    """A ``basic.ack``."""
    return _ACK_FRAME.pack(METHOD, channel, 13, _ACK, tag, multiple, END)


def short_string(text: str) -> bytes:
    """A property of up to 255 bytes, with its length.

    Raises:
        ValueError: it is longer.
    """
    encoded = text.encode()
    if len(encoded) > 255:
        raise ValueError(f"a property has {len(encoded)} bytes, and may have 255")
    return bytes((len(encoded),)) + encoded
