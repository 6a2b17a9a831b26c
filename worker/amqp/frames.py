"""The layout of frames (AMQP 0-9-1, section 2.3.5)."""

import struct

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
KINDS = frozenset({METHOD, HEADER, BODY, HEARTBEAT})
# Type, channel and size of the payload. An end octet follows the payload.
HEAD = struct.Struct(">BHI")
END = 0xCE
# A method's class and number.
METHOD_ID = struct.Struct(">I")
CLOSE, BLOCKED, UNBLOCKED = ((10 << 16) + method for method in (50, 60, 61))
CONTENT_CLASS = 60
PUBLISH, RETURN, DELIVER, GET_OK, ACK, NACK = (
    (CONTENT_CLASS << 16) + method for method in (40, 50, 60, 71, 80, 120)
)
TAG = struct.Struct(">Q")
# The start of a content header: class, weight and the body's size. The properties follow.
CONTENT = struct.Struct(">HHQ")


def read_short_string(buffer: bytes, at: int) -> str:
    """The string at this place, which begins with its length."""
    return buffer[at + 1 : at + 1 + buffer[at]].decode(errors="replace")
