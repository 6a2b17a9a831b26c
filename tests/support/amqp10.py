"""An AMQP 1.0 sender with the subset that RabbitMQ's plugin needs: messages with arbitrary
properties and sections.
"""

import asyncio
import struct
from collections.abc import Sequence

NULL = b"\x40"
_ZERO = b"\x43"  # uint
_WINDOW = b"\x52\x7f"
# Sections and performatives by their descriptors (AMQP 1.0, sections 2.7 and 3.2).
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
TARGET, SOURCE = 0x29, 0x28
PROPERTIES, DATA, SEQUENCE, VALUE = 0x73, 0x75, 0x76, 0x77


def described(descriptor: int, value: bytes) -> bytes:
    return b"\x00\x53" + bytes((descriptor,)) + value


def listed(*values: bytes) -> bytes:
    content = b"".join(values)
    return b"\xd0" + struct.pack(">II", len(content) + 4, len(values)) + content


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"\xb1" + struct.pack(">I", len(encoded)) + encoded


def binary(value: bytes) -> bytes:
    return b"\xb0" + struct.pack(">I", len(value)) + value


def ulong(value: int) -> bytes:
    return b"\x80" + struct.pack(">Q", value)


def properties(*, reply_to: str | None = None, correlation_id: bytes = NULL) -> bytes:
    """The section of properties; a correlation id may be of any AMQP type, such as a number."""
    to = NULL if reply_to is None else text(reply_to)
    return described(PROPERTIES, listed(NULL, NULL, NULL, NULL, to, correlation_id))


async def send(port: int, queue: str, messages: Sequence[bytes]) -> None:
    """Send messages, each as its encoded sections, to a queue; returns once the broker has them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    def write(performative: bytes, payload: bytes = b"") -> None:
        writer.write(struct.pack(">IBBH", 8 + len(performative) + len(payload), 2, 0, 0))
        writer.write(performative + payload)

    async def read_until(descriptor: int) -> bytes:
        while True:
            (size,) = struct.unpack(">I", await reader.readexactly(4))
            frame = await reader.readexactly(size - 4)
            if frame[4:7] == b"\x00\x53" + bytes((descriptor,)):
                return frame

    async with asyncio.timeout(60):
        writer.write(b"AMQP\x00\x01\x00\x00")
        assert await reader.readexactly(8) == b"AMQP\x00\x01\x00\x00"
        write(described(OPEN, listed(text("test"))))
        write(described(BEGIN, listed(NULL, _ZERO, _WINDOW, _WINDOW)))
        source = described(SOURCE, listed(text("test")))
        target = described(TARGET, listed(text(f"/amq/queue/{queue}")))
        sender = b"\x42"
        write(
            described(
                ATTACH, listed(text("test"), _ZERO, sender, NULL, NULL, source, target, NULL, NULL, _ZERO)
            )
        )
        await read_until(FLOW)
        for number, message in enumerate(messages):
            delivery = b"\x70" + struct.pack(">I", number)
            write(
                described(TRANSFER, listed(_ZERO, delivery, binary(b"%d" % number), _ZERO, b"\x42")), message
            )
            await read_until(DISPOSITION)
        write(described(CLOSE, listed()))
        await read_until(CLOSE)
    writer.close()
