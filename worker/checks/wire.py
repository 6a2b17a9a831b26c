"""The messages between the worker and the process that checks: a length, then that many bytes. Jobs
use ``marshal``: it keeps values that JSON can't, and both ends run the same interpreter. Replies
use JSON: the worker does not trust the process.
"""

import struct
from typing import Any, NamedTuple

HEAD = struct.Struct("!I")
# The process has no schema of this digest.
MISSING = "missing"


class Job(NamedTuple):
    """One check.

    Attributes:
        kind: a :data:`worker.checks.jobs.Kind`.
        digest: the digest of the schema's text.
        text: the schema. None if the process may already have it.
        value: the value to check.
        seconds: the most CPU seconds.
        room: the longest message, in characters.
    """

    kind: Any
    digest: bytes
    text: str | None
    value: Any
    seconds: float
    room: int


# Outcome, message and references of a verdict.
Reply = tuple[str, str, int | None]
