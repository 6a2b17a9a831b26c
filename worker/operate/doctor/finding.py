"""What an examination finds."""

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """Whether a worker can serve: it can, it can with a drawback, it can't; nobody looked."""

    ok = "ok"
    warning = "warning"
    problem = "problem"
    unknown = "not checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the thing, in a word or two.
        detail: what was seen.
        advice: what to do about it; empty where there is nothing to do.
    """

    what: str
    verdict: Verdict
    detail: str
    advice: str = ""
