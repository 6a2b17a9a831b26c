"""Reads the states of runs in the order in which they were written. Knows nothing of their readers.

The order is that of ``flow_run_state.updated``, on which Prefect has an index. The process that
writes a state sets it by its own clock, before the commit.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any
from uuid import UUID

from worker.contract.flow_run import FlowRun
from worker.contract.immutable import immutable
from worker.store.engine import Database, driver
from worker.store.errors import fault
from worker.store.reading import Reader

# A place in the order, between two rows: the text or the time of ``updated``, and the id.
Key = tuple[Any, Any]

_FIRST_ID = UUID(int=0)
_POSTGRESQL = """
    SELECT now(), pg_current_snapshot()::text, page.* FROM (SELECT 1) AS one LEFT JOIN LATERAL (
        SELECT id, updated, extract(epoch FROM timestamp)::float8 AS instant FROM flow_run_state
        WHERE updated >= $1 AND (updated > $1 OR id > $2) AND updated < $3{types}
        ORDER BY updated, id LIMIT $4
    ) AS page ON true
"""
_SQLITE = """
    SELECT id, updated, timestamp FROM flow_run_state
    WHERE updated >= ?1 AND (updated > ?1 OR id > ?2) AND updated < ?3{types}
    ORDER BY updated, id LIMIT ?4
"""


@immutable
class Look:
    """The database's clock and transactions as a page was read.

    Attributes:
        now: the time by its clock.
        running: PostgreSQL: the transactions that were writing, by their ids, as far as they are
            below ``next``.
        next: PostgreSQL: the id behind the last transaction that has ended.
        version: SQLite: changes with each commit of another connection.
    """

    now: datetime
    running: frozenset[int] = frozenset()
    next: int = 0
    version: int = 0


@immutable
class Mark:
    """Divides transactions: those that began to write before this time have lower ids.

    Attributes:
        now: the time by the database's clock.
        id: a transaction's, which has ended.
    """

    now: datetime
    id: int


@immutable
class Written:
    """A state that was written.

    Attributes:
        id: the state's.
        key: its place in the order.
        updated: the time at which it was written, by the clock of the process that wrote it.
        instant: its timestamp, as something that can be sorted.
    """

    id: UUID
    key: Key
    updated: datetime
    instant: Any


@immutable
class Page:
    """States that follow each other.

    Attributes:
        look: was had before or as the page was read.
        states: in their order.
        reaches: all states before this place were read.
        full: others may follow.
    """

    look: Look
    states: Sequence[Written]
    reaches: Key
    full: bool


class StatesReader(Reader):
    """Reads states. Its methods raise Fault if the database is away or busy.

    Args:
        types: of the states that are read (None: all).

    Attributes:
        statement: reads a page. Its parameters: the time and the id before the page, the time after
            it, and the most states to read.
    """

    def __init__(
        self, database: Database, *, prefect: bool, lacks: Collection[str], types: Collection[str] | None
    ) -> None:
        super().__init__(database, prefect=prefect, lacks=lacks)
        sqlite = database.sqlite
        # As text, so that no index on the type is used instead of the order.
        column = "+type" if sqlite else "type::text"
        condition = f" AND {column} IN ({', '.join(map(repr, sorted(types)))})" if types is not None else ""
        self.statement = (_SQLITE if sqlite else _POSTGRESQL).format(types=condition)
        # The connection that was used last, and how many there were.
        self._connection: Any = None
        self._connections = 0

    def key(self, instant: datetime) -> Key:
        """The place before all states of this instant or later."""
        if self.database.sqlite:
            return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}", ""
        return instant, _FIRST_ID

    def time(self, key: Key) -> datetime:
        """The instant of a place."""
        return _time(key[0])

    async def look(self) -> Look:
        """Ask the database for its time, and read nothing."""
        nowhere = self.key(datetime.fromtimestamp(0, UTC))
        return (await self.page(nowhere, nowhere, 1)).look

    async def mark(self) -> Mark:
        """Divide PostgreSQL's transactions. It takes an id, and writes nothing."""
        try:
            async with self.database.connect() as connection:
                now, id_ = await driver(connection).fetchrow("SELECT now(), pg_current_xact_id()::text")
        except Exception as error:
            raise fault(error) from error
        return Mark(now, int(id_))

    async def page(self, after: Key, before: Key, limit: int) -> Page:
        """Read the states between two places, at most ``limit``."""
        try:
            async with self.database.connect() as connection:
                server = driver(connection)
                if self.database.sqlite:
                    look, rows = await self._from_file(server, (*after, before[0], limit))
                else:
                    await self._keep_order(server)
                    look, rows = await _from_server(server, self.statement, (*after, before[0], limit))
        except Exception as error:
            raise fault(error) from error  # no row makes it fail, as nothing of it is taken apart there
        states: list[Written] = []
        for id_, updated, instant in rows:
            try:
                states.append(Written(_uuid(id_), (updated, id_), _time(updated), instant))
            except ValueError:  # Prefect could not read it either
                continue
        full = len(rows) == limit
        return Page(look, states, states[-1].key if full and states else before, full)

    async def _keep_order(self, server: Any) -> None:
        """Have PostgreSQL read the index in its order. Otherwise it may read and sort everything
        between the two places for each page.
        """
        if self.database.pooler or server is not self._connection:
            set_ = "SET LOCAL" if self.database.pooler else "SET"
            await server.execute(f"{set_} enable_bitmapscan = off; {set_} enable_sort = off")
            self._connection = server

    async def _from_file(self, server: Any, given: tuple[Any, ...]) -> tuple[Look, Sequence[Any]]:
        if server is not self._connection:
            self._connection, self._connections = server, self._connections + 1
        now = datetime.now(UTC)
        ((version,),) = await server.execute_fetchall("PRAGMA data_version")
        rows = await server.execute_fetchall(self.statement, given)
        # Versions of two connections can't be compared.
        return Look(now, version=version + (self._connections << 40)), rows

    async def sizes(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        """The number of characters of the JSON of the runs with these states, by the states' ids. A
        state that was deleted is missing.
        """
        rows = await self.query(self.statements.run_sizes_of_states, [(each,) for each in ids])
        return {row.state_id: row.size for row in rows}

    async def runs(self, ids: Sequence[UUID]) -> list[FlowRun | None]:
        """The runs with these states, each with that state. None for a state that was deleted."""
        rows = await self.query(self.statements.runs_of_states, [(each,) for each in ids])
        found: dict[UUID, FlowRun] = {}
        for run in map(self.statements.run_of, rows):
            if run.state is not None:
                found[run.state.id] = run
        return [found.get(each) for each in ids]


async def _from_server(
    server: Any, statement: str, given: tuple[Any, ...]
) -> tuple[Look, Sequence[tuple[Any, Any, Any]]]:
    rows = await server.fetch(statement, *given)
    now, snapshot = rows[0][:2]
    _, next_, running = snapshot.split(":")
    look = Look(now, frozenset(map(int, running.split(","))) if running else frozenset(), int(next_))
    # A join does not promise to keep the order.
    return look, sorted((tuple(row)[2:] for row in rows if row[2] is not None), key=itemgetter(1, 0))


def _uuid(value: Any) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))


def _time(value: Any) -> datetime:
    """A time as the database has it. Raises ValueError if it is none."""
    if isinstance(value, datetime):
        return value
    return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
