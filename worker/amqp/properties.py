"""A message's properties as they stand in its content header (AMQP 0-9-1, sections 2.3.5.2 and
4.2.6.1).

Each is read by itself, so that one that can't be read costs no other. And they can be written again
as they came: a dead letter, and what is sent again from there, has the bytes that its producer
sent.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import pamqp.decode
from pamqp.commands import Basic

_FLAGS = struct.Struct(">H")
_LENGTH = struct.Struct(">I")
# Another two octets of flags follow, of which AMQP 0-9-1 uses none.
_MORE_FLAGS = 0x0001
# In the order in which they stand in a header.
FLAGS = {
    name.replace("message_type", "type"): Basic.Properties.flags[name] for name in Basic.Properties.__slots__
}
# Octets that a value in a table takes, by its type; None: a length of four octets, then as many.
_SIZES: Mapping[bytes, int | None] = {
    **dict.fromkeys((b"t", b"b", b"B"), 1),
    **dict.fromkeys((b"s", b"u"), 2),
    **dict.fromkeys((b"I", b"i", b"f"), 4),
    **dict.fromkeys((b"l", b"L", b"d", b"T"), 8),
    **dict.fromkeys((b"S", b"x", b"F", b"A"), None),
    b"D": 5,
    b"V": 0,
}


# Reader and size in bytes. 0: one-byte length prefix, None: four-byte prefix.
_Kind = tuple[Callable[[bytes], Any], int | None]
_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(FLAGS, (lambda raw: raw[1:].decode(), 0)),
    "headers": (lambda raw: pamqp.decode.field_table(raw)[1], None),
    **dict.fromkeys(("delivery_mode", "priority"), (lambda raw: raw[0], 1)),
    "timestamp": (lambda raw: pamqp.decode.timestamp(raw)[1], 8),
}


def read(raw: bytes, unreadable: dict[str, str]) -> dict[str, Any]:
    """The properties that are there, by their names; raises nothing.

    Args:
        raw: flags and properties, as they stand in a content header.
        unreadable: gets the reason for each that can't be read: by its name, ``headers.NAME`` for a
            header, whose value is then its bytes, and ``properties`` for all that follow the last
            one that could.
    """
    found: dict[str, Any] = {}
    try:
        for name, read_one, start, end in _spans(raw):
            try:
                found[name] = read_one(raw[start:end])
            except Exception as error:  # whatever it is, it is told in the refusal
                if name == "headers":
                    found[name] = _each_header(raw[start:end], unreadable)
                else:
                    unreadable[name] = str(error) or type(error).__name__
    except ValueError as error:
        unreadable["properties"] = str(error)
    return found


def _each_header(raw: bytes, unreadable: dict[str, str]) -> dict[str, Any]:
    """A table of which not all can be read: what can't stays as its bytes, and is noted."""
    headers: dict[str, Any] = {}
    try:
        for name, value in split_table(raw):
            name.encode()
            try:
                headers[name] = pamqp.decode.embedded_value(value)[1]
            except RecursionError:
                raise
            except Exception as error:
                headers[name] = bytearray(value)
                unreadable[f"headers.{name}"] = str(error) or type(error).__name__
    # The first: a name that is no UTF-8 is one. The other: tables within tables, which are refused.
    except (ValueError, RecursionError) as error:
        unreadable["headers"] = str(error)
    return headers


def split(raw: bytes) -> dict[str, bytes]:
    """The properties by their names, each as the bytes of its value.

    Raises:
        ValueError: they end before they should.
    """
    return {name: raw[start:end] for name, _, start, end in _spans(raw)}


def join(values: Mapping[str, bytes]) -> bytes:
    """Flags and properties as they stand in a content header.

    Args:
        values: by name, in the order of AMQP 0-9-1, each as the bytes of its value.
    """
    return b"".join((_FLAGS.pack(sum(map(FLAGS.__getitem__, values))), *values.values()))


def in_order(values: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same, in the order in which :func:`join` wants them."""
    return {name: values[name] for name in FLAGS if name in values}


def short_string(text: str) -> bytes:
    """A property of up to 255 bytes, with its length.

    Raises:
        ValueError: it is longer.
    """
    encoded = text.encode(errors="surrogateescape")
    if len(encoded) > 255:
        raise ValueError(f"a property has {len(encoded)} bytes, and may have 255")
    return bytes((len(encoded),)) + encoded


def split_table(raw: bytes) -> list[tuple[str, bytes]]:
    """A table's entries: the name of each (what is no UTF-8 as surrogates), and its value with its
    type as they stand there.

    Raises:
        ValueError: a name or a value can't be told from what follows it.
    """
    entries: list[tuple[str, bytes]] = []
    at, end = _LENGTH.size, len(raw)
    try:
        while at < end:
            name = raw[at + 1 : at + 1 + raw[at]]
            start = at + 1 + len(name)
            size = _SIZES[raw[start : start + 1]]
            at = start + 1 + (_LENGTH.size + _LENGTH.unpack_from(raw, start + 1)[0] if size is None else size)
            entries.append((name.decode(errors="surrogateescape"), raw[start:at]))
    except (IndexError, KeyError, struct.error) as error:
        raise ValueError(f"a header can't be read: {error!r}") from error
    if at != end:
        raise ValueError("a header ends behind its table")
    return entries


def join_table(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """A table of entries as :func:`split_table` gives them.

    Raises:
        ValueError: a name is longer than 255 bytes.
    """
    content = b"".join(part for name, value in entries for part in (short_string(name), value))
    return _LENGTH.pack(len(content)) + content


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, _Kind], ...]:
    """The properties that are there, and their kinds. One producer's messages have the same."""
    return tuple((name, _KINDS[name]) for name, flag in FLAGS.items() if flags & flag)


def _spans(raw: bytes) -> Iterable[tuple[str, Callable[[bytes], Any], int, int]]:
    """Of each property that is there: name, reader, where its value begins and where it ends."""
    try:
        (flags,) = _FLAGS.unpack_from(raw)
        at, more = _FLAGS.size, flags
        while more & _MORE_FLAGS:
            (more,) = _FLAGS.unpack_from(raw, at)
            at += _FLAGS.size
        for name, (read, size) in _present(flags):
            if size == 0:
                end = at + 1 + raw[at]
            elif size is None:
                end = at + _LENGTH.size + _LENGTH.unpack_from(raw, at)[0]
            else:
                end = at + size
            if end > len(raw):
                raise ValueError(f"{name} ends behind its frame")
            yield name, read, at, end
            at = end
    except (IndexError, struct.error) as error:
        raise ValueError("they end before they should") from error
