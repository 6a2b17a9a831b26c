"""Explains a dead letter: what its reason means, what to do, and what else is wrong in it. Knows no
queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.broker.incoming import read_message
from worker.contract.errors import Refusal
from worker.contract.message import Message
from worker.contract.statuses import meaning_of, plain
from worker.operate.editing import Checking
from worker.operate.letter import MOVED, Letter
from worker.operate.letter_copies import is_event, sent_again


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong in a request.

    Attributes:
        place: the names and indices that lead to it, with ``body`` or ``header`` first. Empty: it
            concerns the message as a whole.
        reason: why it is wrong, in one line.
    """

    place: Sequence[str | int]
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a letter, for its operator.

    Attributes:
        means: what its status and reason mean.
        remedy: what to do.
        problems: all that a worker finds wrong before it looks into its database. None: this can't
            be checked.
    """

    means: str
    remedy: str
    problems: Sequence[Problem] | None


def explain(letter: Letter, checking: Checking) -> Explanation:
    """Explain a letter."""
    return explained(letter.delivery.message, letter.status, letter.error, checking)


def explained(message: Message, status: int | None, error: str, checking: Checking) -> Explanation:
    """Explain a letter by its content, its status and its reason."""
    if is_event(message):
        means = "Prefect's API refused this event of a run"
        return Explanation(means, "mend what the reason names, then replay it: it goes to the outbox", None)
    means, remedy = _meaning(status, error)
    return Explanation(means, remedy, _problems(message, checking))


def problems(refusal: Refusal) -> list[Problem]:
    """The problems that a refusal names."""
    detail = refusal.body.get("exception_detail")
    if not detail:
        return [Problem((), refusal.line)]
    return [Problem(tuple(each["loc"]), str(each["msg"])) for each in detail]


def _meaning(status: int | None, error: str) -> tuple[str, str]:
    if (meaning := meaning_of(status, error)) is not None:
        return plain(meaning.means), plain(meaning.remedy)
    for reason, (means, remedy) in MOVED.items():
        if status is None and error.startswith(f"moved by the broker: {reason}:"):
            return means, remedy
    return "no worker of this version wrote it", "look at its headers for the program that did"


def _problems(message: Message, checking: Checking) -> list[Problem] | None:
    try:
        publication = sent_again(message, "")
    except ValueError:
        return None
    refusal = checking.refusal(read_message(publication.properties, publication.body))
    return [] if refusal is None else problems(refusal)
