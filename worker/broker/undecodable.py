"""Lets a message pass whose properties pamqp cannot read (text that is no UTF-8, a timestamp out of range), where pamqp would
have the connection given up for it, with everything else on it. Knows nothing of what is done with such a message.
"""

import struct
from typing import Any

import pamqp.frame
from pamqp import commands as spec
from pamqp.header import ContentHeader

# Class, weight and size of the body stand before the flags and the properties.
_PROPERTIES = 12


class UndecodableProperties(spec.Basic.Properties):
    """Stands in for properties that could not be read; all of them are None.

    Attributes:
        raw: the flags and the properties as they came.
        reason: what was wrong with them.
    """

    raw: bytes = b""
    reason: str = ""


def read_properties(raw: bytes) -> spec.Basic.Properties:
    """The properties of a content header; raises nothing.

    Args:
        raw: flags and properties, as they stand there.
    """
    header = ContentHeader()
    try:
        offset, flags = header._get_flags(raw)
        header.properties.unmarshal(flags, raw[offset:])
    except Exception as error:  # whatever is wrong with one message's properties is that message's affair
        properties = UndecodableProperties()
        properties.raw, properties.reason = raw, str(error) or type(error).__name__
        return properties
    return header.properties


def _tolerant(frame_data: bytes) -> ContentHeader:
    class_id, weight, body_size = struct.unpack(">HHQ", frame_data[:_PROPERTIES])
    header = ContentHeader(weight, body_size, read_properties(frame_data[_PROPERTIES:]))
    header.class_id = class_id
    return header


def install() -> None:
    """Take the place of pamqp's reader of content headers, for channels of aiormq's own; calling it again changes nothing."""
    unmarshal: Any = _tolerant
    pamqp.frame._unmarshal_header_frame = unmarshal
