"""The cause of a dead letter: the status, and the reason without its variable parts."""

import hashlib
import re
from dataclasses import dataclass
from functools import cache, lru_cache

from worker.contract.errors import MAX_LINE
from worker.contract.kinds import KINDS

# Stands for a variable part.
_ANY = "…"
_PLACE = re.compile(r"\b(body|header)\.([^.:\s]+)([^:]*?)(?=: )")
# In the order of their use. A quote is no apostrophe: it has no letter before it.
_VARIABLE = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" \(and \d+ more\)", ""),
        # Names that the worker writes without quotes.
        (r"(?<=in work queue ).+(?= because deployment )", _ANY),
        (r"(?<=block document ).+(?=, which is)", _ANY),
        (r"(?<=API version ).+(?= but this server)", _ANY),
        (r"(?<=but received ).+$", _ANY),
        (r"(?<=Failing row contains ).+$", _ANY),
        (r"""(?<!\w)(['"`]).*?(?:\1(?!\w)|$)""", rf"\1{_ANY}\1"),
        (r"(?i)\b[0-9a-f]{8}(-?)(?:[0-9a-f]{4}\1){3}[0-9a-f]{12}\b", _ANY),
        (r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?", _ANY),
        (r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b", _ANY),
        # A protocol's version is no variable part.
        (r"(?<!AMQP )(?<![\w.-])[-+]?\d+(?:[.,_]\d+)*(?:[eE][-+]?\d+)?(?!\w)", _ANY),
    )
)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why letters are there.

    Attributes:
        id: the status and six hexadecimal digits, such as ``409-3fa2c1``. It is the same as long as
            workers write the same reason.
        status: as a letter's.
        reason: its reason, with ``…`` for each variable part.
    """

    id: str
    status: int | None
    reason: str


@lru_cache(maxsize=4096)
def cause_of(status: int | None, error: str) -> Cause:
    """The cause of a letter with this status and reason."""
    reason = reason_of(error)
    digest = hashlib.blake2b(f"{status} {reason}".encode("utf-8", "surrogatepass"), digest_size=3)
    kind = "broker" if error.startswith("moved by the broker") else "unknown"
    return Cause(f"{kind if status is None else status}-{digest.hexdigest()}", status, reason)


def reason_of(error: str) -> str:
    """A reason without its variable parts: ids, numbers, times, quoted names, values, and places
    below a field of the request.
    """
    reason = _PLACE.sub(_field, error[:MAX_LINE])
    for pattern, replacement in _VARIABLE:
        reason = pattern.sub(replacement, reason)
    return " ".join(_without_values(reason).split())


def _without_values(reason: str) -> str:
    """A reason without its lists and objects."""
    parts: list[str] = []
    depth = 0
    for each in reason:
        if each in "[{":
            if not depth:
                parts.append(_ANY)
            depth += 1
        elif not depth:
            parts.append(each)
        elif each in "]}":
            depth -= 1
    return "".join(parts)


def _field(place: re.Match[str]) -> str:
    """The field of a place. Its producer chose the names below it, and those that are no fields."""
    where, name, below = place.groups()
    known = where == "header" or name in _fields()
    return f"{where}.{name if known else _ANY}" + (f".{_ANY}" if known and below else "")


@cache
def _fields() -> frozenset[str]:
    return frozenset(name for kind in KINDS for name in kind.model.model_fields)
