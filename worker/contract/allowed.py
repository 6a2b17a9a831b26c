"""Allow-lists of the names that producers may use. Prefect's endpoint has no such check. Knows no
database.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .errors import NotAllowed
from .message import DIRECT_REPLY_TO, reply_queues

# Verdicts that each list caches. A guess at the number of names in use at one time.
NAMES_MAX = 1024
# Longest allowed name, in characters. Longer names are refused unmatched: some patterns take time
# that grows with the square of the length.
NAME_MAX = 1000

# Placeholders that Prefect's workers replace when they execute a run
# (``prefect.utilities.templating``).
_PLACEHOLDER = re.compile(r"{{\s*([\w.\-\[\]$]+)\s*}}")
_OF_A_VARIABLE = "prefect.variables."

# Suffixes of the workers' own queues: only workers write there.
OF_WORKERS = (".dead", ".events", ".states.cursor")


class Names:
    """The names that a pattern allows.

    Args:
        pattern: a regular expression for the whole name; ``none`` allows none, and None all.
        setting: the name of the setting that holds the pattern.

    Attributes:
        limited: whether there is a pattern.
    """

    def __init__(self, pattern: str | None = None, setting: str = "") -> None:
        self.limited = pattern is not None
        self._setting = setting
        regex = None if pattern in (None, "none") else re.compile(pattern)
        self._verdict = lru_cache(NAMES_MAX)(
            lambda name: regex is not None and len(name) <= NAME_MAX and regex.fullmatch(name) is not None
        )

    def __contains__(self, name: str) -> bool:
        """Whether the name is allowed."""
        return not self.limited or self._verdict(name)

    def check(self, what: str, name: str) -> None:
        """Raise NotAllowed unless the name is allowed."""
        if name not in self:
            raise self.refusal(what, name)

    def refusal(self, what: str, name: str) -> NotAllowed:
        """The refusal of a request that uses this name."""
        return NotAllowed(what, name, self._setting)


@dataclass(frozen=True)
class Allowed:
    """The names that producers may use. By default, all.

    Attributes:
        flows: flows that they may run, by name.
        deployments: deployments that they may run, as ``FLOW/DEPLOYMENT``.
        variables: workspace variables that parameters and job variables may use.
        job_variables: job variables that they may set.
    """

    flows: Names = field(default_factory=Names)
    deployments: Names = field(default_factory=Names)
    variables: Names = field(default_factory=Names)
    job_variables: Names = field(default_factory=Names)

    def check_job_variables(self, job_variables: Mapping[str, Any] | None) -> None:
        """Raise NotAllowed for a job variable that must not be set, or for a value with the
        placeholder of a variable that must not be read.
        """
        if not job_variables:
            return
        if self.job_variables.limited:
            for name in job_variables:
                self.job_variables.check("job variable", name)
        if self.variables.limited:
            for text in _texts(job_variables):
                self._check_placeholders(text)

    def _check_placeholders(self, text: str) -> None:
        if "{{" not in text and "}}" not in text:
            return
        for name in _PLACEHOLDER.findall(text):
            if name.startswith(_OF_A_VARIABLE):
                self.variables.check("variable", name.replace(_OF_A_VARIABLE, ""))
        # A work pool's template may join two values that each hold half a placeholder.
        rest = _PLACEHOLDER.sub("", text)
        if "{{" in rest or "}}" in rest:
            self.variables.check("unfinished placeholder", rest)


class ReplyQueues:
    """The queues that replies may be sent to: those that a pattern allows, but no worker's own
    queue. Direct replies are always allowed: they reach only their requester.

    Args:
        pattern: as of :class:`Names`.
        request_queue: this worker's request queue.
    """

    def __init__(self, pattern: str | None, request_queue: str) -> None:
        self._names = Names(pattern)
        self._request_queue = request_queue

    def __contains__(self, queue: str) -> bool:
        return all(
            name.startswith(DIRECT_REPLY_TO)
            or (name != self._request_queue and not name.endswith(OF_WORKERS) and name in self._names)
            for name in reply_queues(queue)
        )


def _texts(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            pending += each.values()
        elif isinstance(each, list):
            pending += each
