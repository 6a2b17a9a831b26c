"""The dead letters as they were at the last look. RabbitMQ counts each look at a letter, so pages
show what the last look has found, and only a button looks again.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from worker.contract.errors import MAX_LINE
from worker.contract.message import Message, is_own_header
from worker.operate.cause_groups import CauseGroup, Causes
from worker.operate.causes import Cause
from worker.operate.dead_letters import REFUSED_WITHIN, DeadLetters, open_dead_letters
from worker.operate.editing import Checking
from worker.operate.explaining import Explanation, explained
from worker.operate.letter import Letter, Summary
from worker.operate.letter_spool import Kept, Spool
from worker.operate.selection import Selection
from worker.settings import Settings
from worker.ui.jobs import Job

# Letters to list: the newest ones. A longer list is no help, and causes count all letters.
MAX_LETTERS = 10_000
# Bytes of content to keep, beyond 32 MiB in a temporary file. Without its content a letter is
# listed and can be replayed; to show it takes a look of its own.
MAX_BYTES = 256 * 1024 * 1024
# Longest key to list, in characters.
MAX_KEY = 200
# Seconds to wait for the letters that are refused again.
WAIT_SECONDS = 60.0
_PROPERTIES = (
    *("message_id", "correlation_id", "reply_to", "content_type", "content_encoding", "type", "app_id"),
    *("user_id", "timestamp"),
)


@dataclass
class Found:
    """A letter of the last look, or several identical ones."""

    summary: Summary
    kept: Kept | None
    count: int = 1


@dataclass
class Look:
    """The result of a look. Actions take away the letters that they remove.

    Attributes:
        letters: the newest ones by id, the oldest first.
        total: the number of all letters.
        undeliverable: the number of those that the broker can't deliver.
    """

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    letters: dict[str, Found] = field(default_factory=dict)
    groups: Sequence[CauseGroup] = ()
    total: int = 0
    undeliverable: int = 0

    def matching(self, cause: str = "", text: str = "", ids: Collection[str] = ()) -> list[Found]:
        """The letters of a cause with a text, the newest first."""
        text = text.lower()
        return [
            each
            for each in reversed(self.letters.values())
            if (not cause or each.summary.cause == cause)
            and (not ids or each.summary.id in ids)
            and (not text or any(text in str(part).lower() for part in _texts(each.summary)))
        ]

    def cause(self, cause_id: str) -> Cause | None:
        """A cause by its id."""
        return next((each.cause for each in self.groups if each.cause.id == cause_id), None)


@dataclass(frozen=True, slots=True)
class _Among(Selection):
    """Selects letters of the last look. The user has not seen later ones."""

    among: Collection[str] = ()

    def matches(self, letter: Letter) -> bool:
        return letter.id in self.among


class Letters:
    """The dead letters of the request queue.

    Attributes:
        last: the last look, if there was one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._checking = Checking(
            settings.max_body_bytes, settings.max_parameter_size, settings.plain_messages
        )
        self._spool = Spool()
        # One at a time: they take the letters from each other.
        self._lock = asyncio.Lock()
        self.last: Look | None = None

    def explained(self, message: Message, summary: Summary) -> Explanation:
        """A letter's meaning, and what to do."""
        return explained(message, summary.status, summary.error, self._checking)

    def close(self) -> None:
        """Forget all."""
        self._spool.close()

    def read(self, found: Found) -> Message | None:
        """A letter's content, if it is kept."""
        return None if found.kept is None else self._spool.get(found.kept)

    async def look(self, job: Job) -> None:
        """Look at all letters, once."""
        async with self._lock, self._open() as letters:
            job.total = await letters.count()
            look, causes, spool, kept_bytes = Look(), Causes(), Spool(), 0
            async for letter in letters.look(job.advance):
                causes.add(letter)
                look.total += 1
                if (again := look.letters.get(letter.id)) is not None:
                    again.count += 1
                    continue
                kept = None
                if kept_bytes < MAX_BYTES:
                    kept = spool.put(letter.delivery.message)
                    kept_bytes += kept.size
                look.letters[letter.id] = Found(_shortened(letter.summary()), kept)
                if len(look.letters) > MAX_LETTERS:
                    del look.letters[next(iter(look.letters))]
            look.groups, look.undeliverable = causes.groups(), len(letters.undeliverable)
        self._spool.close()
        self._spool, self.last = spool, look
        job.goes_on = job.back

    async def replay(self, job: Job, ids: Collection[str], change: bytes | None, check: bool) -> None:
        """Send letters again, and tell which are refused again.

        Args:
            change: the body instead of theirs.
            check: whether a worker that would refuse the changed letter is asked first.
        """
        async with self._lock, self._open() as letters:
            job.total = len(ids)
            picked = await letters.pick(_Among(among=ids))
            job.total = len(picked)
            changing = None if change is None else (lambda body: change)
            if changing is not None and check:
                await letters.check(picked, changing, self._checking)
            count = await letters.replay(picked, job.advance, change=changing)
            self._forget(ids)
            job.lines.append(_number(count, "sent again."))
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    refused = await letters.refused_again()
            except TimeoutError:
                job.lines.append("The workers have not come to them yet: look again later.")
                return
        served = count - len(refused)
        if served:
            job.lines.append(
                f"{_number(served, 'served')}: not refused within {REFUSED_WITHIN:g} seconds after the queue "
                "was empty."
            )
        job.shown = refused[:100]
        if refused:
            job.lines.append(f"{_number(len(refused), 'refused again')}.")

    async def purge(self, job: Job, ids: Collection[str]) -> None:
        """Delete letters for good."""
        async with self._lock, self._open() as letters:
            picked = await letters.pick(_Among(among=ids), keep=False)
            job.total = len(picked)
            count = await letters.purge(picked, job.advance)
            self._forget(ids)
        job.lines.append(_number(count, "deleted."))

    def _open(self) -> AbstractAsyncContextManager[DeadLetters]:
        return open_dead_letters(
            self._settings.amqp_url, self._settings.queue_names, self._settings.fleet_logins
        )

    def _forget(self, ids: Collection[str]) -> None:
        """Take letters out of the last look."""
        if self.last is None:
            return
        counts = {group.cause.id: group for group in self.last.groups}
        for each in ids:
            if (found := self.last.letters.pop(each, None)) is not None:
                self.last.total -= found.count
                if (group := counts.get(found.summary.cause)) is not None:
                    group.count -= found.count
        self.last.groups = [group for group in self.last.groups if group.count > 0]


def properties(message: Message) -> Mapping[str, str]:
    """The properties that a letter has."""
    found = ((name, getattr(message, name)) for name in _PROPERTIES)
    return {name: str(value) for name, value in found if value is not None}


def headers(message: Message) -> Mapping[str, str]:
    """The headers that its producer wrote."""
    return {name: str(value) for name, value in message.headers.items() if is_own_header(name)}


def _shortened(summary: Summary) -> Summary:
    """Texts that anybody may have written, of a length that 10,000 letters may have."""
    return replace(
        summary,
        failed_at=summary.failed_at and summary.failed_at[:40],
        error=summary.error[:MAX_LINE],
        key=summary.key and summary.key[:MAX_KEY],
    )


def _texts(summary: Summary) -> Sequence[object]:
    return summary.id, summary.status, summary.error, summary.key or "", summary.message_id or ""


def _number(count: int, done: str) -> str:
    return f"{count:,} letter{'' if count == 1 else 's'} {done}"
