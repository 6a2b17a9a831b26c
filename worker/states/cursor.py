"""The cursor: how far states were published. It is a message of the worker's own, and may be
forged.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

# Most bytes of a cursor. One has 30 for each of 1000 seconds, and 40 for each of 200 states.
MAX_BYTES = 1024 * 1024

_Number = Annotated[int, Field(ge=0, lt=2**64)]


class Unreadable(Exception):
    """A message is no cursor. The message says why."""


class Cursor(BaseModel):
    """How far states were published.

    Attributes:
        version: of this form.
        id: of this cursor.
        began: no state was published yet: a worker offers to begin here. Any other cursor goes
            before it.
        told: all states before this time were published, once and for all.
        reached: states up to this time were published, as far as they were visible.
        seconds: the states published since ``told``: by seconds since 1970, the number of states
            and the last bits of their ids, as in :class:`worker.states.told.Digest`.
        ids: of the states that were published last.
        open: transactions that were open for long, by their ids, with the time since which they may
            have written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    id: UUID = Field(default_factory=uuid4)
    began: bool = False
    told: AwareDatetime
    reached: AwareDatetime
    seconds: dict[_Number, tuple[_Number, _Number]] = Field(default_factory=dict)
    ids: list[UUID] = Field(default_factory=list)
    open: dict[_Number, AwareDatetime] = Field(default_factory=dict)

    def encode(self) -> bytes:
        """The body of the cursor's message."""
        return self.model_dump_json().encode()


def read_cursor(body: bytes, latest: datetime) -> Cursor:
    """Read a cursor from the body of a message.

    Args:
        latest: no cursor can be beyond this time.

    Raises:
        Unreadable: it is none.
    """
    if len(body) > MAX_BYTES:
        raise Unreadable(f"it has {len(body):,} bytes")
    try:
        cursor = Cursor.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Unreadable(f"{where}: {first['msg']}" if where else first["msg"]) from None
    if not cursor.told <= cursor.reached <= latest:
        raise Unreadable(f"it is beyond the present: told {cursor.told}, reached {cursor.reached}")
    return cursor


def furthest(cursors: list[Cursor]) -> Cursor:
    """The cursor that counts. If all are offers to begin, it is the earliest: no state was
    published.
    """
    begun = [each for each in cursors if not each.began]
    if begun:
        return max(begun, key=lambda each: (each.reached, each.told))
    return min(cursors, key=lambda each: each.told)
