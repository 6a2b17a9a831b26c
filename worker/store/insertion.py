"""PostgreSQL's create statement and its parameter: one statement for a batch of any size, prepared
once; knows no connection.

Each run goes in as one JSON array, its state behind it, and PostgreSQL takes the columns out by
their places. asyncpg looks at each element of an array parameter, so one text a run costs the
worker half of what an array a column does, and PostgreSQL about the same. What a run and its state
have in common goes in once, and what all new runs have, not at all.
"""

from collections.abc import Sequence
from datetime import UTC, timedelta
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from worker.contract.encoding import dumps
from worker.contract.flow_run import FlowRun
from worker.store.rows import kind_of
from worker.store.tables import STATE_TYPE, flow_run, flow_run_state

# How a column is taken out of the array, by its kind.
_TAKEN = {
    "uuid": "(new.j ->> {place})::uuid",
    "timestamp": "(new.j ->> {place})::timestamptz",
    "integer": "(new.j ->> {place})::integer",
    "json": "nullif(new.j -> {place}, 'null')",
    "state": f"(new.j ->> {{place}})::{STATE_TYPE}",
    "text": "new.j ->> {place}",
}

# What holds of each new run (:func:`worker.creation.new_run`). Columns with the value of another
# column of the run:
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

# All others are sent, in this order.
_RUN_SENT = [
    column
    for column in flow_run.columns
    if column.name not in RUN_FOLLOWS and column.name not in RUN_CONSTANTS
]
_STATE_SENT = [column for column in flow_run_state.columns if column.name not in STATE_FOLLOWS]
_PLACES = {column: place for place, column in enumerate([*_RUN_SENT, *_STATE_SENT])}
_TIMESTAMPS = [place for column, place in _PLACES.items() if kind_of(column) == "timestamp"]

_values_of_run = attrgetter(*(column.name for column in _RUN_SENT))
_values_of_state = attrgetter(*(column.name for column in _STATE_SENT))


def names(table: sa.Table) -> str:
    """The columns of a table, for a statement."""
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _value(column: sa.Column[Any]) -> str:
    if column.table is flow_run and column.name in RUN_CONSTANTS:
        return RUN_CONSTANTS[column.name][1]
    followed = (RUN_FOLLOWS if column.table is flow_run else STATE_FOLLOWS).get(column.name)
    source = column if followed is None else flow_run.columns[followed]
    return _TAKEN[kind_of(source)].format(place=_PLACES[source])


def _values(table: sa.Table) -> str:
    return ", ".join(_value(column) for column in table.columns)


# No conflict target: the primary key counts as well, for runs whose id is their message's
# fingerprint.
INSERT = f"""
WITH new AS MATERIALIZED (
    SELECT sent.j::jsonb AS j FROM unnest($1::text[]) AS sent(j)
), run AS (
    INSERT INTO flow_run ({names(flow_run)})
    SELECT {_values(flow_run)} FROM new
    ON CONFLICT DO NOTHING
    RETURNING id
), state AS (
    INSERT INTO flow_run_state ({names(flow_run_state)})
    SELECT {_values(flow_run_state)} FROM new JOIN run ON run.id = {_value(flow_run.columns["id"])}
)
SELECT id FROM run
"""


def parameter(runs: Sequence[FlowRun]) -> list[str]:
    """The parameter of :data:`INSERT`: the JSON array of each run."""
    return [_array(run) for run in runs]


def _array(run: FlowRun) -> str:
    values = [*_values_of_run(run), *_values_of_state(run.state)]
    for place in _TIMESTAMPS:
        if values[place] is not None and values[place].tzinfo is not UTC:
            values[place] = values[place].astimezone(UTC)  # PostgreSQL reads no offset of seconds in ISO 8601
    return dumps(values).decode()
