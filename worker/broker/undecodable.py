"""Lets a message pass whose properties pamqp cannot read (text that is no UTF-8, a timestamp out of range), where pamqp would
have the connection given up for it, with everything else on it. Knows nothing of what is done with such a message.
"""

import struct
from typing import Any

import pamqp.frame
from pamqp import commands as spec
from pamqp.header import ContentHeader

_unmarshal: Any = pamqp.frame._unmarshal_header_frame


class UndecodableProperties(spec.Basic.Properties):
    """Stands in for properties that could not be read; all of them are None.

    Attributes:
        raw: the flags and the properties as they came.
        reason: what was wrong with them.
    """

    raw: bytes = b""
    reason: str = ""


def _tolerant(frame_data: bytes) -> ContentHeader:
    try:
        header: ContentHeader = _unmarshal(frame_data)
    except Exception as error:  # whatever is wrong with one message's properties is that message's affair
        class_id, weight, body_size = struct.unpack(">HHQ", frame_data[:12])
        properties = UndecodableProperties()
        properties.raw, properties.reason = frame_data[12:], str(error) or type(error).__name__
        header = ContentHeader(weight, body_size, properties)
        header.class_id = class_id
    return header


def install() -> None:
    """Take the place of pamqp's reader of content headers; calling it again changes nothing."""
    pamqp.frame._unmarshal_header_frame = _tolerant
