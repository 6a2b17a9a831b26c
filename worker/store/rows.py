"""Between rows and values: how each kind of column is written and read, on each database. Kinds
come from the tables.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic_core import from_json

from worker.contract.encoding import dumps
from worker.contract.flow_run import FlowRun, FlowRunState
from worker.store.tables import flow_run, flow_run_state

Codec = Callable[[Any], Any]

RUN_COLUMNS = tuple(column.name for column in flow_run.columns)
STATE_COLUMNS = tuple(column.name for column in flow_run_state.columns)

_EPOCH = datetime(1970, 1, 1)


def kind_of(column: sa.Column[Any]) -> str:
    """``uuid``, ``timestamp``, ``json``, ``interval``, ``boolean``, ``integer``, ``state`` or
    ``text``.
    """
    kinds: dict[type[Any], str] = {
        sa.Uuid: "uuid",
        sa.TIMESTAMP: "timestamp",
        sa.JSON: "json",
        sa.Interval: "interval",
        sa.Boolean: "boolean",
        sa.Integer: "integer",
        sa.Enum: "state",
    }
    return next((kind for type_, kind in kinds.items() if isinstance(column.type, type_)), "text")


def _json(value: Any) -> str | None:
    return None if value is None else dumps(value).decode()


def _sqlite_timestamp(value: datetime | None) -> str | None:
    return None if value is None else _sqlite_datetime(value)


# A new run has the same one ten times.
@lru_cache(maxsize=16)
def _sqlite_datetime(value: datetime) -> str:
    # As SQLAlchemy's DATETIME stores it: naive, UTC, always with microseconds.
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


@lru_cache(maxsize=16)
def _sqlite_interval(value: timedelta) -> str:
    # As SQLAlchemy's Interval does without a native type: a timestamp that far from the epoch.
    return (_EPOCH + value).strftime("%Y-%m-%d %H:%M:%S.%f")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


_SQLITE_WRITE: Mapping[str, Codec] = {
    "uuid": _text,
    "timestamp": _sqlite_timestamp,
    "json": _json,
    "interval": _sqlite_interval,
    "boolean": int,
}
_POSTGRESQL_WRITE: Mapping[str, Codec] = {"json": _json}

_SQLITE_READ: Mapping[str, Codec] = {
    "uuid": UUID,
    "timestamp": lambda value: datetime.fromisoformat(value).replace(tzinfo=UTC),
    "json": from_json,
    "interval": lambda value: datetime.fromisoformat(value) - _EPOCH,
    "boolean": bool,
}
_POSTGRESQL_READ: Mapping[str, Codec] = {"json": from_json}


def _codecs(table: sa.Table, by_kind: Mapping[str, Codec]) -> tuple[tuple[str, Codec | None], ...]:
    return tuple((column.name, by_kind.get(kind_of(column))) for column in table.columns)


class RowCodec:
    """Writes and reads rows of both tables for one database.

    Args:
        dialect: ``sqlite`` or ``postgresql``.
    """

    def __init__(self, dialect: str) -> None:
        write, read = (
            (_SQLITE_WRITE, _SQLITE_READ) if dialect == "sqlite" else (_POSTGRESQL_WRITE, _POSTGRESQL_READ)
        )
        self._write_run, self._write_state = _codecs(flow_run, write), _codecs(flow_run_state, write)
        self._write, self._read = write, read
        self._read_run, self._read_state = _codecs(flow_run, read), _codecs(flow_run_state, read)

    def run_values(self, run: FlowRun) -> list[Any]:
        """A run's parameters in the order of ``RUN_COLUMNS``."""
        return [
            getattr(run, name) if write is None else write(getattr(run, name))
            for name, write in self._write_run
        ]

    def state_values(self, state: FlowRunState) -> list[Any]:
        """A state's parameters in the order of ``STATE_COLUMNS``."""
        return [
            getattr(state, name) if write is None else write(getattr(state, name))
            for name, write in self._write_state
        ]

    def values(self, table: sa.Table, row: Mapping[str, Any]) -> list[Any]:
        """Some columns of a row of any table as parameters, in the order of ``row``."""
        written = []
        for name, value in row.items():
            write = self._write.get(kind_of(table.columns[name]))
            written.append(value if write is None or value is None else write(value))
        return written

    def row(self, table: sa.Table, row: Any) -> dict[str, Any]:
        """A row of any table, from the columns of its definition."""
        return _values(iter(row), _codecs(table, self._read))

    def read(self, row: Any) -> FlowRun:
        """A run from a row of ``RUN_COLUMNS``, ``STATE_COLUMNS`` (null without a state), work
        pool's id, name, queue's name.
        """
        values = iter(row)
        run = FlowRun(**_values(values, self._read_run))
        state = _values(values, self._read_state)
        if state["id"] is not None:
            run.state = FlowRunState(**state)
        pool_id = next(values, None)
        run.work_pool_id = UUID(str(pool_id)) if pool_id else None
        run.work_pool_name = next(values, None)
        run.pool_queue_name = next(values, None)
        return run


def _values(row: Any, codecs: tuple[tuple[str, Codec | None], ...]) -> dict[str, Any]:
    values = {}
    for name, read in codecs:
        value = next(row)
        values[name] = value if value is None or read is None else read(value)
    return values
