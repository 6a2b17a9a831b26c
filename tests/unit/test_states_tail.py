"""The tail, at databases that are made up: whatever the clocks and the transactions do, each state
is told, and at rest once.
"""

import asyncio
import random
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from worker.contract.errors import Fault
from worker.states.cursor import Cursor
from worker.states.patience import PATIENCE, Patience
from worker.states.tail import Tail
from worker.store.states import Key, Look, Mark, Page, Written

START = datetime(2030, 1, 1, tzinfo=UTC)
SMALL = replace(PATIENCE, window=5, page=7)


@dataclass
class Database:
    """A database with a clock of its own, whose transactions are committed when the test says so.

    Attributes:
        now: the time by its clock.
        rows: the states that are visible.
        reads: how many rows were read.
        away: reading fails.
    """

    sqlite: bool = False
    now: datetime = START
    rows: list[Written] = field(default_factory=list)
    open: dict[int, list[Written]] = field(default_factory=dict)
    reads: int = 0
    away: bool = False
    version: int = 0
    ended: int = 99
    _transactions: int = 100
    _ids: random.Random = field(default_factory=lambda: random.Random(1))

    async def mark(self) -> Mark:
        if self.away:
            raise Fault("away")
        mark = self.begin()
        self.commit(mark)
        return Mark(self.now, mark)

    def begin(self) -> int:
        self._transactions += 1
        self.open[self._transactions] = []
        return self._transactions

    def write(self, transaction: int, ahead: float = 0.0) -> Written:
        """Write a state by a clock that is ahead by some seconds."""
        updated, id_ = self.now + timedelta(seconds=ahead), UUID(int=self._ids.getrandbits(128))
        state = Written(id_, (updated, id_), updated, updated.timestamp())
        self.open[transaction].append(state)
        return state

    def commit(self, transaction: int) -> None:
        for state in self.open.pop(transaction):
            insort(self.rows, state, key=lambda row: row.key)
        self.version += 1
        self.ended = max(self.ended, transaction)

    def put(self, ahead: float = 0.0) -> Written:
        """Write a state, and commit."""
        transaction = self.begin()
        state = self.write(transaction, ahead)
        self.commit(transaction)
        return state

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def key(self, instant: datetime) -> Key:
        return instant, UUID(int=0)

    def time(self, key: Key) -> datetime:
        time: datetime = key[0]
        return time

    async def page(self, after: Key, before: Key, limit: int) -> Page:
        if self.away:
            raise Fault("away")
        first = bisect_right(self.rows, after, key=lambda row: row.key)
        found = [row for row in self.rows[first : first + limit] if row.key < before]
        self.reads += len(found)
        full = len(found) == limit
        # As PostgreSQL does: transactions with higher ids are not shown.
        running = frozenset(each for each in self.open if each < self.ended)
        look = Look(self.now, version=self.version)
        if not self.sqlite:
            look = Look(self.now, running, self.ended + 1)
        return Page(look, found, found[-1].key if full else before, full)


class Listener:
    """Tells states to nobody, and counts them."""

    def __init__(
        self, database: Database, patience: Patience = PATIENCE, cursor: Cursor | None = None
    ) -> None:
        self.told: Counter[UUID] = Counter()
        self.order: list[Written] = []
        self.fails = False
        self.database = database
        cursor = cursor or Cursor(told=database.now, reached=database.now)
        self.tail = Tail(database, sqlite=database.sqlite, tell=self._tell, cursor=cursor, patience=patience)

    async def _tell(self, states: Sequence[Written]) -> None:
        if self.fails:
            raise Fault("away")
        self.told.update(state.id for state in states)
        self.order += states

    async def step(self) -> None:
        while await self.tail.step():
            pass

    async def go_on(self, seconds: float, each: float = 0.2) -> None:
        """Look again and again for a time."""
        for _ in range(round(seconds / each)):
            self.database.wait(each)
            await self.step()


@pytest.fixture(params=[False, True], ids=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest) -> Database:
    return Database(sqlite=request.param)


async def test_a_state_is_told_at_once_and_never_again(database: Database) -> None:
    listener = Listener(database)
    for _ in range(5):
        state = database.put()
        await listener.step()
        assert listener.told[state.id] == 1
        await listener.go_on(130)
    assert set(listener.told.values()) == {1}


async def test_what_was_written_before_the_cursor_is_not_told(database: Database) -> None:
    database.put()
    database.wait(1)
    listener = Listener(database)
    await listener.go_on(200)
    assert not listener.told


@pytest.mark.parametrize("ahead", [-5.0, -1.0, 1.0, 5.0])
@pytest.mark.parametrize("patience", [PATIENCE, SMALL], ids=["few", "many"])
async def test_clocks_may_differ(database: Database, ahead: float, patience: Patience) -> None:
    listener = Listener(database, patience)
    await listener.go_on(10)
    states = []
    for number in range(300):
        states.append(database.put(ahead if number % 3 else 0.0))
        await listener.go_on(0.2)
    if patience is PATIENCE:
        assert all(listener.told[state.id] for state in states)
    await listener.go_on(11)
    assert [listener.told[state.id] for state in states] == [1] * len(states)


async def test_a_clock_that_is_far_ahead_hides_nothing(database: Database) -> None:
    listener = Listener(database, SMALL)
    ahead = [database.put(3600) for _ in range(50)]
    states = []
    for _ in range(100):
        states.append(database.put())
        await listener.go_on(0.2)
    assert [listener.told[state.id] for state in states] == [1] * len(states)
    await listener.go_on(3600, each=5.0)
    assert [listener.told[state.id] for state in ahead] == [1] * len(ahead)


async def test_states_that_are_seen_together_are_told_by_their_timestamps(database: Database) -> None:
    listener = Listener(database)
    transaction = database.begin()
    states = [database.write(transaction, ahead) for ahead in (0.3, 0.1, 0.2)]
    instants = iter((1.0, 2.0, 0.5))
    database.open[transaction] = [replace(state, instant=next(instants)) for state in states]
    database.commit(transaction)
    await listener.step()
    assert [state.instant for state in listener.order] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("seconds", [5, 80, 90, 100, 400])
@pytest.mark.parametrize("patience", [PATIENCE, SMALL], ids=["few", "many"])
async def test_a_late_commit_is_told(seconds: float, patience: Patience) -> None:
    database = Database()
    listener = Listener(database, patience)
    transaction = database.begin()
    late = [database.write(transaction) for _ in range(20)]
    others = []
    for _ in range(round(seconds)):
        others.append(database.put())
        late.append(database.write(transaction))
        await listener.go_on(1, each=1)
        assert listener.told[others[-1].id] == 1
    database.commit(transaction)
    await listener.go_on(150, each=1)
    assert all(listener.told[state.id] == 1 for state in late + others)


@pytest.mark.parametrize("seconds", [85, 100, 500, 1000])
async def test_a_late_commit_is_told_although_nothing_else_happens(seconds: float) -> None:
    database = Database()
    listener = Listener(database)
    first = database.put()
    await listener.go_on(100)
    transaction = database.begin()
    late = database.write(transaction)
    await listener.go_on(seconds, each=1)
    database.commit(transaction)
    await listener.go_on(130)
    assert (listener.told[first.id], listener.told[late.id]) == (1, 1)


async def test_ids_of_transactions_are_taken_only_while_some_end() -> None:
    database = Database()
    listener = Listener(database)
    database.put()
    await listener.go_on(10)
    taken = database.ended
    await listener.go_on(1000, each=1)
    assert database.ended <= taken + 1
    for _ in range(100):
        database.put()
        await listener.go_on(1)
    assert database.ended <= taken + 202


async def test_a_late_commit_in_a_file_is_told() -> None:
    """Its writer waited for a minute, and then kept the file for long: nobody else wrote."""
    database = Database(sqlite=True)
    listener = Listener(database, SMALL)
    transaction = database.begin()
    late = database.write(transaction)
    for _ in range(60):
        database.put()
        await listener.go_on(1, each=1)
    await listener.go_on(500, each=1)
    database.commit(transaction)
    await listener.go_on(1)
    database.put()
    await listener.go_on(1)
    assert listener.told[late.id] == 1
    assert listener.told.total() == 62


async def test_a_forgotten_transaction_holds_back_nobody_and_costs_nothing() -> None:
    database = Database()
    listener = Listener(database, replace(PATIENCE, told=2000))
    forgotten = database.begin()
    late = database.write(forgotten)
    for second in range(8000):
        state = database.put()
        if second == 3000:
            other = database.begin()
            slow = database.write(other)
        if second == 3400:
            database.commit(other)
        await listener.go_on(1, each=1)
        assert listener.told[state.id]
        assert listener.tail._told.count <= 2101
    assert list(listener.tail.settled.forgotten) == [forgotten]
    assert listener.told[slow.id] == 1
    assert listener.tail.cursor().told > database.now - timedelta(seconds=300)
    assert set(listener.told.values()) == {1}
    before = database.reads
    await listener.go_on(100, each=1)
    assert database.reads - before < 2000
    database.commit(forgotten)
    await listener.go_on(10)
    assert listener.told[late.id] == 1
    assert not listener.tail.settled.forgotten


async def test_a_forgotten_transaction_is_known_to_the_next_teller() -> None:
    database = Database()
    listener = Listener(database)
    forgotten = database.begin()
    late = database.write(forgotten)
    await listener.go_on(1000, each=1)
    cursor = Cursor.model_validate_json(listener.tail.cursor().encode())
    database.commit(forgotten)
    database.wait(10)
    following = Listener(database, cursor=cursor)
    await following.tail.recall()
    await following.go_on(1)
    assert following.told[late.id] == 1


async def test_a_clock_that_is_set_back_hides_nothing(database: Database) -> None:
    listener = Listener(database)
    database.put()
    await listener.go_on(10)
    database.wait(-3600)
    states = []
    for _ in range(200):
        await listener.go_on(1, each=1)
        states.append(database.put())
    await listener.go_on(20)
    assert all(listener.told[state.id] == 1 for state in states)


async def test_what_failed_to_be_told_is_told_later(database: Database) -> None:
    listener = Listener(database, SMALL)
    listener.fails = True
    states = [database.put() for _ in range(20)]
    for _ in range(3):
        with pytest.raises(Fault):
            await listener.step()
    listener.fails = False
    database.away = True
    with pytest.raises(Fault):
        await listener.step()
    database.wait(1000)
    states.append(database.put())
    database.away = False
    await listener.go_on(1)
    assert all(listener.told[state.id] == 1 for state in states)


async def test_after_an_outage_it_goes_on_from_the_cursor_page_by_page(database: Database) -> None:
    listener = Listener(database, replace(PATIENCE, page=10))
    await listener.go_on(1)
    cursor = listener.tail.cursor()
    states = []
    for _ in range(500):
        states.append(database.put())
        database.wait(10)
    following = Listener(database, replace(PATIENCE, page=10), cursor)
    await following.tail.step()
    assert following.tail.behind > 4000
    await following.go_on(1)
    assert following.tail.behind < 60
    assert [following.told[state.id] for state in states] == [1] * len(states)
    # Each page was read once, but for the last minute's.
    assert database.reads < 700


async def test_the_next_teller_tells_no_state_again_but_of_the_last_second(database: Database) -> None:
    listener = Listener(database)
    for _ in range(60):
        database.put()
        database.put()
        await listener.go_on(1)
    cursor = Cursor.model_validate_json(listener.tail.cursor().encode())
    new = database.put()
    database.wait(0.5)
    following = Listener(database, cursor=cursor)
    await following.tail.recall()
    await following.go_on(100)
    assert following.told[new.id] == 1
    assert following.told.total() <= 3


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_nothing_is_missing(seed: int, database: Database) -> None:
    """Transactions of all lengths, clocks that differ, failures, and tellers that are killed."""
    chance = random.Random(seed)
    patience = replace(PATIENCE, window=20, page=chance.choice((11, 50, 5000)))
    listener = Listener(database, patience)
    await listener.go_on(10)
    written: list[Written] = []
    ends: dict[int, datetime] = {}
    told: Counter[UUID] = Counter()
    cursor = listener.tail.cursor()
    for _ in range(1000):
        for _ in range(chance.choice((0, 0, 1, 3))):
            if database.sqlite and database.open:
                continue  # one at a time
            transaction = database.begin()
            for _ in range(chance.choice((1, 1, 30))):
                written.append(database.write(transaction, chance.uniform(-6, 6)))
            length = chance.choice((0.0, 0.05, 1.0, 1.0, 5.0, 70.0, 900.0))
            ends[transaction] = database.now + timedelta(seconds=length)
        for transaction in [each for each, end in ends.items() if end <= database.now]:
            database.commit(transaction)
            del ends[transaction]
        database.wait(chance.choice((0.05, 0.2, 0.2, 3.0)))
        database.away = chance.random() < 0.05
        listener.fails = chance.random() < 0.05
        try:
            if listener.tail._digests:
                await listener.tail.recall()
            await listener.tail.step()
        except Fault:
            pass
        if chance.random() < 0.2:
            cursor = listener.tail.cursor()
        if chance.random() < 0.02:
            told += listener.told
            listener = Listener(database, patience, Cursor.model_validate_json(cursor.encode()))
    for transaction in list(ends):
        database.commit(transaction)
    database.away = listener.fails = False
    for _ in range(200):
        await listener.step()
        database.wait(1)
        database.put()  # or SQLite settles nothing
    told += listener.told
    missing = [state for state in written if not told[state.id]]
    assert not missing
    await asyncio.sleep(0)
