"""A message's properties, read from its content header: each by itself, and whatever is wrong with
them is that message's affair.

pamqp would have the connection given up for properties that it can't read (text that is no UTF-8, a
timestamp out of range), with everything else on it; and it takes most of the time that a delivery
takes.
"""

import struct
from collections.abc import Callable
from typing import Any

import pamqp.decode
import pamqp.frame
from pamqp import commands as spec
from pamqp.header import ContentHeader

# Class, weight and size of the body stand before the flags and the properties.
_PROPERTIES = 12
_FLAGS = struct.Struct(">H")
# Another two octets of flags follow, of which AMQP 0-9-1 uses none.
_MORE_FLAGS = 0x0001


class UndecodableProperties(spec.Basic.Properties):
    """Stands in for properties that could not be read; all of them are None.

    Attributes:
        raw: the flags and the properties as they came.
        reason: what was wrong with them.
    """

    raw: bytes = b""
    reason: str = ""


def _short_string(raw: bytes, at: int) -> tuple[int, str]:
    end = at + 1 + raw[at]
    if end > len(raw):
        raise ValueError("a property ends behind its frame")
    return end, raw[at + 1 : end].decode()


def _octet(raw: bytes, at: int) -> tuple[int, int]:
    return at + 1, raw[at]


def _by_pamqp(decode: Callable[[bytes], tuple[int, Any]]) -> Callable[[bytes, int], tuple[int, Any]]:
    def read(raw: bytes, at: int) -> tuple[int, Any]:
        size, value = decode(raw[at:])
        return at + size, value

    return read


_READERS: dict[str, Callable[[bytes, int], tuple[int, Any]]] = {
    "shortstr": _short_string,
    "octet": _octet,
    "table": _by_pamqp(pamqp.decode.field_table),
    "timestamp": _by_pamqp(pamqp.decode.timestamp),
}
# In the order in which they stand in a header: flag, name, reader.
_FIELDS = tuple(
    (spec.Basic.Properties.flags[name], name, _READERS[spec.Basic.Properties.amqp_type(name)])
    for name in spec.Basic.Properties.__slots__
)


def property_flags(*names: str) -> int:
    """The flags of a content header that has these properties."""
    return sum(spec.Basic.Properties.flags[name] for name in names)


def read_properties(raw: bytes) -> spec.Basic.Properties:
    """The properties of a content header; raises nothing.

    Args:
        raw: flags and properties, as they stand there.
    """
    try:
        (flags,) = _FLAGS.unpack_from(raw)
        at, more = _FLAGS.size, flags
        while more & _MORE_FLAGS:
            (more,) = _FLAGS.unpack_from(raw, at)
            at += _FLAGS.size
        properties = spec.Basic.Properties()
        for flag, name, read in _FIELDS:
            if flags & flag:
                at, value = read(raw, at)
                setattr(properties, name, value)
    except Exception as error:  # whatever it is, it is told in the refusal
        undecodable = UndecodableProperties()
        undecodable.raw, undecodable.reason = raw, str(error) or type(error).__name__
        return undecodable
    return properties


def _content_header(frame_data: bytes) -> ContentHeader:
    class_id, weight, body_size = struct.unpack(">HHQ", frame_data[:_PROPERTIES])
    header = ContentHeader(weight, body_size, read_properties(frame_data[_PROPERTIES:]))
    header.class_id = class_id
    return header


def install() -> None:
    """Take the place of pamqp's reader of content headers, for channels of aiormq's own; calling it
    again changes nothing.
    """
    read: Any = _content_header
    pamqp.frame._unmarshal_header_frame = read
