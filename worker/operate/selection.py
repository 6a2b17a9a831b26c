"""Which dead letters a command means. Knows no queue."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

from worker.contract.plain import PlainMessages
from worker.operate.letter import Letter


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Letters that match all of these. An empty or missing one matches each letter.

    Attributes:
        ids: the first digits of ids.
        status: the status.
        error: a text in the reason, in any case.
        causes: ids of causes (:mod:`worker.operate.causes`).
        since: not refused before this time. A letter without a time does not match.
        key: the idempotency key.
        flow: the flow's id. Where the request names a deployment: the flow's name.
        deployment: the deployment's id, its name, or ``FLOW NAME/DEPLOYMENT NAME``.
        plain: how the queue's plain messages are read, for their deployment.
    """

    ids: Sequence[str] = ()
    status: int | None = None
    error: str | None = None
    causes: Sequence[str] = ()
    since: datetime | None = None
    key: str | None = None
    flow: str | None = None
    deployment: str | None = None
    plain: PlainMessages | None = None

    @property
    def selects_all(self) -> bool:
        """Whether it matches each letter."""
        given = (getattr(self, each.name) for each in fields(self) if each.name != "plain")
        return all(value is None or value == () for value in given)

    def matches(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.ids or letter.id.startswith(tuple(self.ids)))
            and (self.status is None or letter.status == self.status)
            and (self.error is None or self.error.lower() in letter.error.lower())
            and (not self.causes or letter.cause.id in self.causes)
            and (self.since is None or (letter.failed is not None and letter.failed >= self.since))
            # These read the body.
            and (self.key is None or letter.key == self.key)
            and (self.flow is None or _same(self.flow, self._flow(letter)))
            and (self.deployment is None or _same(self.deployment, self._deployment(letter)))
        )

    def _flow(self, letter: Letter) -> Sequence[str]:
        name, has_deployment, _ = self._deployment_name(letter).partition("/")
        return letter.text("flow_id"), name if has_deployment else ""

    def _deployment(self, letter: Letter) -> Sequence[str]:
        name = self._deployment_name(letter)
        return letter.text("deployment_id"), name, name.partition("/")[2]

    def _deployment_name(self, letter: Letter) -> str:
        if self.plain is not None and self.plain.have(letter.delivery.message):
            return self.plain.deployment
        return letter.text("deployment_name")


def _same(wanted: str, names: Sequence[str]) -> bool:
    """Whether one of the names is the wanted one. An id may have any of a UUID's forms."""
    return any(name and (name == wanted or _plain(name) == _plain(wanted)) for name in names)


def _plain(name: str) -> str:
    try:
        return str(UUID(name))
    except ValueError:
        return name
