"""PostgreSQL's create statement and its parameters: one statement for a batch of any size, prepared once; knows no connection.

Runs with their states go in as arrays, one parameter a column, which asyncpg writes in binary. What a run and its state have in
common goes in once, and what all new runs have, not at all: asyncpg looks at each element of an array, and a third of its time is
saved so.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from worker.contract.flow_run import FlowRun
from worker.store.rows import WRITE_POSTGRESQL, Codec, kind_of
from worker.store.tables import STATE_TYPE, flow_run, flow_run_state

ARRAY_TYPES = {
    "uuid": "uuid[]",
    "timestamp": "timestamptz[]",
    "interval": "interval[]",
    "boolean": "boolean[]",
    "integer": "integer[]",
    "json": "text[]",
    "state": "text[]",
    "text": "text[]",
}
CASTS = {"json": "::text::jsonb", "state": f"::text::{STATE_TYPE}"}

# What holds of each new run (:func:`worker.creation.new_run`). Columns with the value of another column of the run:
RUN_FOLLOWS = {"updated": "created", "state_timestamp": "created"}
STATE_FOLLOWS = {
    "id": "state_id",
    "created": "created",
    "updated": "created",
    "flow_run_id": "id",
    "type": "state_type",
    "timestamp": "created",
    "name": "state_name",
}
# Columns of the run that have one value in all of them, and what it is in SQL:
RUN_CONSTANTS: dict[str, tuple[Any, str]] = {
    "total_run_time": (timedelta(0), "'0'::interval"),
    "deployment_version": (None, "NULL"),
    "infrastructure_pid": (None, "NULL"),
    "auto_scheduled": (False, "false"),
}

# All others are sent.
_RUN_SENT = [column for column in flow_run.columns if column.name not in RUN_FOLLOWS and column.name not in RUN_CONSTANTS]
_STATE_SENT = [column for column in flow_run_state.columns if column.name not in STATE_FOLLOWS]


def names(table: sa.Table) -> str:
    """The columns of a table, for a statement."""
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _sent_as(column: sa.Column[Any]) -> str:
    return f'"{column.name}"' if column.table is flow_run else f'"state_{column.name}"'


def _value(column: sa.Column[Any]) -> str:
    if column.table is flow_run and column.name in RUN_CONSTANTS:
        return RUN_CONSTANTS[column.name][1]
    followed = (RUN_FOLLOWS if column.table is flow_run else STATE_FOLLOWS).get(column.name)
    source = column if followed is None else flow_run.columns[followed]
    return f"new.{_sent_as(source)}{CASTS.get(kind_of(column), '')}"


def _values(table: sa.Table) -> str:
    return ", ".join(_value(column) for column in table.columns)


def _insert() -> str:
    sent = [*_RUN_SENT, *_STATE_SENT]
    arrays = ", ".join(f"${number}::{ARRAY_TYPES[kind_of(column)]}" for number, column in enumerate(sent, start=1))
    # No conflict target: the primary key counts as well, for runs whose id is their message's fingerprint.
    return f"""
WITH new AS MATERIALIZED (
    SELECT * FROM unnest({arrays}) AS sent({", ".join(_sent_as(column) for column in sent)})
), run AS (
    INSERT INTO flow_run ({names(flow_run)})
    SELECT {_values(flow_run)} FROM new
    ON CONFLICT DO NOTHING
    RETURNING id
), state AS (
    INSERT INTO flow_run_state ({names(flow_run_state)})
    SELECT {_values(flow_run_state)} FROM new JOIN run ON run.id = new.id
)
SELECT id FROM run
"""


INSERT = _insert()


# The attribute, and how its values are written, of each.
_RUN_WRITERS, _STATE_WRITERS = (
    [(column.name, WRITE_POSTGRESQL.get(kind_of(column))) for column in sent] for sent in (_RUN_SENT, _STATE_SENT)
)


def parameters(runs: Sequence[FlowRun]) -> list[list[Any]]:
    """The parameters of :data:`INSERT`: a list for each column that is sent."""
    return [*_written(runs, _RUN_WRITERS), *_written([run.state for run in runs], _STATE_WRITERS)]


def _written(rows: Sequence[Any], writers: Sequence[tuple[str, Codec | None]]) -> Iterator[list[Any]]:
    for name, write in writers:
        if write is None:
            yield [getattr(row, name) for row in rows]
        else:
            yield [write(getattr(row, name)) for row in rows]
