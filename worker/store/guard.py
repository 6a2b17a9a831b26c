"""Looks regularly whether others have dropped the unique index of the runs, or added triggers."""

from time import monotonic

from sqlalchemy.engine import Connection

from worker.contract.errors import Fault
from worker.store.engine import Database, driver
from worker.store.errors import fault
from worker.store.tables import UNIQUE_INDEX

# Seconds between two looks, and so until a dropped index is noticed. A look takes a millisecond.
LOOK_SECONDS = 30.0

MISSING_INDEX = (
    f"no unique index {UNIQUE_INDEX}, without which a request may make two runs. Make it: "
    f"CREATE UNIQUE INDEX {UNIQUE_INDEX} ON flow_run (flow_id, idempotency_key)"
)

# A valid index on both columns and all rows, under any name.
_POSTGRESQL_INDEX = """
    SELECT 1 FROM pg_index
    WHERE indrelid = 'flow_run'::regclass AND indisunique AND indisvalid AND indpred IS NULL
    AND (SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute
         WHERE attrelid = indrelid AND attnum = ANY (indkey)) = '{flow_id,idempotency_key}'
"""
_SQLITE_INDEX = """
    SELECT 1 FROM pragma_index_list('flow_run') AS list WHERE "unique" AND NOT partial
    AND (SELECT group_concat(name) FROM (SELECT name FROM pragma_index_info(list.name) ORDER BY name))
        = 'flow_id,idempotency_key'
"""
_POSTGRESQL_TRIGGER = """
    SELECT 1 FROM pg_trigger
    WHERE tgrelid IN ('flow_run'::regclass, 'flow_run_state'::regclass)
    AND NOT tgisinternal AND tgenabled <> 'D'
"""
_SQLITE_TRIGGER = """
    SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN ('flow_run', 'flow_run_state')
"""


def look_at(*, sqlite: bool) -> str:
    """The statement that asks for the index and for triggers: one row of two booleans."""
    index = _SQLITE_INDEX if sqlite else _POSTGRESQL_INDEX
    trigger = _SQLITE_TRIGGER if sqlite else _POSTGRESQL_TRIGGER
    return f"SELECT EXISTS ({index}), EXISTS ({trigger})"


def lacks_unique_index(connection: Connection) -> list[str]:
    """The problems with the unique index, a line each."""
    sqlite = connection.dialect.name == "sqlite"
    row = connection.exec_driver_sql(look_at(sqlite=sqlite)).one()
    return [] if row[0] else [MISSING_INDEX]


class Guard:
    """Watches the unique index, which keeps a request from making a second run.

    Attributes:
        has_triggers: triggers may remove inserted rows.
    """

    def __init__(self, database: Database) -> None:
        self.has_triggers = False
        self._database = database
        self._next = 0.0

    async def look(self) -> None:
        """Look again after :data:`LOOK_SECONDS`.

        Raises:
            Fault: the unique index is missing, or the database is away.
        """
        if monotonic() < self._next:
            return
        statement = look_at(sqlite=self._database.sqlite)
        try:
            async with self._database.connect() as connection:
                server = driver(connection)
                fetch = server.execute_fetchall if self._database.sqlite else server.fetch
                ((has_index, has_triggers),) = await fetch(statement)
        except Exception as error:
            raise fault(error) from error
        if not has_index:
            raise Fault(MISSING_INDEX)
        self.has_triggers = bool(has_triggers)
        self._next = monotonic() + LOOK_SECONDS
