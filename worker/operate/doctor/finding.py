"""The results of an examination."""

from dataclasses import dataclass
from enum import Enum
from functools import partial


class Verdict(str, Enum):
    """Whether a worker can serve: yes, with a drawback, no, or not checked."""

    ok = "ok"
    warning = "warning"
    problem = "problem"
    unknown = "not checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: the checked thing, in a word or two.
        detail: the observation.
        advice: what to do about it. Empty if there is nothing to do.
    """

    what: str
    verdict: Verdict
    detail: str
    advice: str = ""


def _finding(verdict: Verdict, what: str, detail: str, advice: str = "") -> Finding:
    return Finding(what, verdict, detail, advice)


ok, warning, problem, unknown = (partial(_finding, verdict) for verdict in Verdict)
