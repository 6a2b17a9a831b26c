"""What goes between the worker and the process that checks: a length, and so many bytes. To the
process ``marshal``, as it keeps what JSON has no word for and both ends are the same interpreter;
back JSON, as the worker trusts nothing that comes from there.
"""

import struct
from typing import Any, NamedTuple

HEAD = struct.Struct("!I")
# The process has no schema of this digest.
MISSING = "missing"


class Job(NamedTuple):
    """One check.

    Attributes:
        kind: as of :data:`worker.checks.jobs.Kind`.
        digest: of the schema's text.
        text: the schema; None if the process may have it already.
        value: what is checked.
        seconds: of CPU that it may take.
        room: characters of a message at most.
    """

    kind: Any
    digest: bytes
    text: str | None
    value: Any
    seconds: float
    room: int


# Outcome, message and references of a verdict.
Reply = tuple[str, str, int | None]
