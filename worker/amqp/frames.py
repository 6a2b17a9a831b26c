"""How frames stand on the wire (AMQP 0-9-1, section 2.3.5)."""

import struct

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
KINDS = frozenset({METHOD, HEADER, BODY, HEARTBEAT})
# Type, channel and size of the payload, which an end octet follows.
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
# In a content header before its properties: class, weight and the body's size.
CONTENT = struct.Struct(">HHQ")


def read_short_string(buffer: bytes, at: int) -> str:
    """A string that begins there with its length."""
    return buffer[at + 1 : at + 1 + buffer[at]].decode(errors="replace")
