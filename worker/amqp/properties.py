"""Reads and writes a message's properties as bytes of its content header (AMQP 0-9-1, sections
2.3.5.2 and 4.2.6.1).

Each property is read separately, so an unreadable one costs no other. Properties can be written
again byte for byte: dead letters and replayed messages have the bytes that their producer sent.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import pamqp.decode
from pamqp.commands import Basic

_FLAGS = struct.Struct(">H")
_LENGTH = struct.Struct(">I")
# With this flag, two more octets of flags follow. AMQP 0-9-1 uses none of them.
_MORE_FLAGS = 0x0001
# In the order of a content header.
FLAGS = {
    name.replace("message_type", "type"): Basic.Properties.flags[name] for name in Basic.Properties.__slots__
}
# The size in octets of a table's value, by its type. None: a length of four octets comes first.
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
    """The present properties by their names. Raises nothing.

    Args:
        raw: flags and properties, as in a content header.
        unreadable: gets the reason for each unreadable property, by its name. For a header, the key
            is ``headers.NAME`` and its value stays bytes. The key ``properties`` stands for all
            after the last readable property.
    """
    found: dict[str, Any] = {}
    try:
        for name, read_one, start, end in _spans(raw):
            try:
                found[name] = read_one(raw[start:end])
            except Exception as error:  # the refusal shows it
                if name == "headers":
                    found[name] = _each_header(raw[start:end], unreadable)
                else:
                    unreadable[name] = str(error) or type(error).__name__
    except ValueError as error:
        unreadable["properties"] = str(error)
    return found


def _each_header(raw: bytes, unreadable: dict[str, str]) -> dict[str, Any]:
    """Read a table's headers one by one. An unreadable one stays bytes, and is noted."""
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
    # ValueError: also for a name that is no UTF-8. RecursionError: too many tables in tables.
    except (ValueError, RecursionError) as error:
        unreadable["headers"] = str(error)
    return headers


def split(raw: bytes) -> dict[str, bytes]:
    """The bytes of each property's value, by its name.

    Raises:
        ValueError: the properties are incomplete.
    """
    return {name: raw[start:end] for name, _, start, end in _spans(raw)}


def join(values: Mapping[str, bytes]) -> bytes:
    """Flags and properties, as in a content header.

    Args:
        values: the bytes of each value by name, in the order of AMQP 0-9-1.
    """
    return b"".join((_FLAGS.pack(sum(map(FLAGS.__getitem__, values))), *values.values()))


def in_order(values: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same values in the order that :func:`join` needs."""
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
    """A table's entries: each name, and the bytes of its type and value. Invalid UTF-8 in a name
    becomes surrogates.

    Raises:
        ValueError: the length of an entry can't be determined.
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
    """The bytes of a table. Its entries are as :func:`split_table` returns them.

    Raises:
        ValueError: a name is longer than 255 bytes.
    """
    content = b"".join(part for name, value in entries for part in (short_string(name), value))
    return _LENGTH.pack(len(content)) + content


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, _Kind], ...]:
    """The present properties and their kinds. Messages of one producer usually have the same."""
    return tuple((name, _KINDS[name]) for name, flag in FLAGS.items() if flags & flag)


def _spans(raw: bytes) -> Iterable[tuple[str, Callable[[bytes], Any], int, int]]:
    """The name, reader, start and end of each present property."""
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
