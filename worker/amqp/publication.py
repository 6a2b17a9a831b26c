"""A message to publish, and its confirm."""

import asyncio
import struct
from collections.abc import Callable
from enum import Enum
from itertools import takewhile
from typing import NamedTuple

from .frames import BODY, CONTENT, CONTENT_CLASS, END, HEAD, HEADER, METHOD, PUBLISH
from .properties import short_string

_END = bytes((END,))
# Method, and two reserved octets.
_PUBLISH = struct.pack(">IH", PUBLISH, 0)
# Bytes of a frame besides its payload.
_FRAME_OVERHEAD = HEAD.size + len(_END)


class Publication(NamedTuple):
    """One message to publish, to a queue by its name or to an exchange.

    Attributes:
        queue: the routing key, on the default exchange a queue's name.
        properties: flags and properties, as in a content header.
        body: the payload.
        mandatory: the broker returns it if no queue takes it.
        exchange: its name (default: the default exchange).
    """

    queue: str
    properties: bytes
    body: bytes
    mandatory: bool = True
    exchange: str = ""

    @property
    def size(self) -> int:
        """Size of the body in bytes."""
        return len(self.body)

    def frames(self, channel: int, frame_max: int) -> list[bytes]:
        """The frames of a ``basic.publish`` as bytes. Each item has one or more whole frames.

        Raises:
            ValueError: a name is too long, or the properties are larger than a frame.
        """
        self.check(frame_max)
        exchange, routing_key = short_string(self.exchange), short_string(self.queue)
        head = (
            HEAD.pack(METHOD, channel, len(_PUBLISH) + len(exchange) + len(routing_key) + 1),
            _PUBLISH,
            exchange,
            routing_key,
            b"\x01" if self.mandatory else b"\x00",
            _END,
            HEAD.pack(HEADER, channel, CONTENT.size + len(self.properties)),
            CONTENT.pack(CONTENT_CLASS, 0, len(self.body)),
            self.properties,
            _END,
        )
        step = frame_max - _FRAME_OVERHEAD
        if 0 < len(self.body) <= step:
            return [b"".join((*head, HEAD.pack(BODY, channel, len(self.body)), self.body, _END))]
        frames = [b"".join(head)]
        for start in range(0, len(self.body), step):
            part = self.body[start : start + step]
            frames.append(b"".join((HEAD.pack(BODY, channel, len(part)), part, _END)))
        return frames

    def check(self, frame_max: int) -> None:
        """Raise ValueError if the properties are larger than a frame."""
        size = CONTENT.size + len(self.properties) + _FRAME_OVERHEAD
        if size > frame_max:
            raise ValueError(f"the properties take {size} bytes and a frame holds {frame_max}")


class Confirm(Enum):
    """The broker's answer to a publication."""

    ACK = "ack"
    RETURN = "return"  # there is no queue of that name; the ack that follows is ignored
    NACK = "nack"  # its queue is full, or can't write


class Outgoing(NamedTuple):
    """A publication, and the callback for its confirm.

    Attributes:
        on_confirm: called within a read of the socket: it must neither wait nor raise.
    """

    publication: Publication
    on_confirm: Callable[[Confirm], None]


class Unconfirmed:
    """The unconfirmed publications of one channel, by their numbers.

    Attributes:
        none: set while there are none.
    """

    def __init__(self) -> None:
        self.none = asyncio.Event()
        self.none.set()
        self._outgoing: dict[int, Outgoing] = {}
        # Their numbers by queue. Filled only once a publication is returned, which is rare.
        self._by_queue: dict[str, dict[int, None]] = {}

    def add(self, number: int, outgoing: Outgoing) -> None:
        """Add a publication that waits for its confirm. Numbers rise from 1."""
        if not self._outgoing:
            self.none.clear()
        self._outgoing[number] = outgoing
        if self._by_queue:
            self._by_queue.setdefault(outgoing.publication.queue, {})[number] = None

    def confirm(self, number: int, confirm: Confirm, *, multiple: bool = False) -> None:
        """Report the confirm of a publication, or with ``multiple`` of all up to it."""
        # Looked up in order: the broker may have confirmed a million singly before.
        for each in list(takewhile(number.__ge__, self._outgoing)) if multiple else (number,):
            if (outgoing := self._outgoing.pop(each, None)) is not None:
                if self._by_queue:
                    self._by_queue.get(outgoing.publication.queue, {}).pop(each, None)
                outgoing.on_confirm(confirm)
        if not self._outgoing:
            self._by_queue = {}
            self.none.set()

    def returned(self, queue: str) -> None:
        """Report that a publication to this queue was returned. The broker does not say which one,
        so all unconfirmed ones to this queue count as returned.
        """
        if not self._by_queue:
            for number, outgoing in self._outgoing.items():
                self._by_queue.setdefault(outgoing.publication.queue, {})[number] = None
        for number in self._by_queue.pop(queue, ()):
            self.confirm(number, Confirm.RETURN)
