"""What the store asks of a database, of either kind: one list of columns, and one form of each
statement; knows no connection.

Many rows go in as one parameter, a JSON array each, whose places are the columns. Parameters by the
thousand would cost more to compile and bind than the database takes to store them.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache, reduce
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from worker.contract.encoding import dumps_text
from worker.contract.flow_run import FlowRun, FlowRunState
from worker.store.tables import (
    Json,
    Timestamp,
    Uuid,
    artifact,
    deployment,
    flow,
    flow_run,
    flow_run_state,
    work_pool,
    work_queue,
)

# What a run that is read has from the rows of its work queue and its work pool.
_OF_POOL = ("work_pool_id", "work_pool_name", "pool_queue_name")
# No conflict target: the primary key counts as well, for runs whose id is their message's
# fingerprint.
_UNLESS_THERE = "ON CONFLICT DO NOTHING"


class Statements:
    """The statements for one database.

    Args:
        dialect: the database's, as its engine knows it.
        prefect: it is a Prefect server's.
        lacks: the columns of :func:`worker.contract.flow_run.since` that it does not have, as
            ``TABLE.COLUMN``.

    Attributes:
        prefect, lacks: as given.
        columns: those of a run and its state that are written and read.
        sqlite: it is SQLite's; else PostgreSQL's.
        create: inserts runs, each unless it exists, and returns the ids of those that it inserted.
            PostgreSQL's inserts their states as well.
        create_plainly: the same, which fails where a run exists.
        complete: the ids of some runs, of those that are there with their states.
        create_states: SQLite's, for the states of the runs with the ids of its second parameter.
        read_by_key: the runs of some flows and idempotency keys.
        read_by_id: the runs of some ids.
        sizes_by_key: how large the runs are that :attr:`read_by_key` reads.
        sizes_by_id: how large those are that :attr:`read_by_id` reads.
        deployments_by_id: the deployments of some ids.
        deployments_by_name: those of some names of flows and deployments.
        deployment_sizes_by_id: the sizes of the deployments of some ids.
        deployment_sizes_by_name: of those of some names.
        lookup: makes a statement that reads columns of the rows in which the first of them has one
            of some values.
    """

    def __init__(self, dialect: sa.Dialect, *, prefect: bool, lacks: Collection[str] = ()) -> None:
        self.prefect, self.sqlite, self._dialect = prefect, dialect.name == "sqlite", dialect
        self.lacks = lacks
        self._timestamp = _as_text(Timestamp, dialect)
        self._interval = _as_text(flow_run.c.total_run_time.type, dialect) or str
        self._run, self.state_columns = (
            [column for column in table.columns if str(column) not in lacks]
            for table in (flow_run, flow_run_state)
        )
        self.columns = (*self._run, *self.state_columns)
        self._names, self._state_names = (
            [column.name for column in columns] for columns in (self._run, self.state_columns)
        )
        self._values = attrgetter(*self._names, *(f"state.{name}" for name in self._state_names))
        self._timestamps, self._intervals = (
            [place for place, column in enumerate(self.columns) if isinstance(column.type, kind)]
            for kind in (sa.DateTime, sa.Interval)
        )
        insert_runs = self._insert(self._run, 0)
        insert_states = self._insert(self.state_columns, len(self._run))
        id_of_run = self._taken(flow_run.c.id, 0)
        if self.sqlite:
            # MATERIALIZED: or else SQLite writes out the array again for each of its columns. WHERE
            # true: or else it takes ON CONFLICT for the beginning of a join's condition.
            new = "WITH new AS MATERIALIZED (SELECT value FROM json_each(?))"
            self.create = f"{new} {insert_runs} FROM new WHERE true {_UNLESS_THERE} RETURNING id"
            self.create_states = (
                f"{new} {insert_states} FROM new WHERE {id_of_run} IN (SELECT value FROM json_each(?))"
            )
        else:
            self.create = f"""
                WITH new AS MATERIALIZED (
                    SELECT sent.value::jsonb AS value FROM unnest($1::text[]) AS sent(value)
                ), run AS (
                    {insert_runs} FROM new {_UNLESS_THERE} RETURNING id
                ), state AS (
                    {insert_states} FROM new JOIN run ON run.id = {id_of_run}
                )
                SELECT id FROM run
            """
        self.create_plainly = self.create.replace(_UNLESS_THERE, "")
        complete, theirs = self._given(flow_run.c.id)
        complete = complete.join(flow_run, theirs)
        complete = complete.join(flow_run_state, flow_run_state.c.id == flow_run.c.state_id)
        self.complete = sa.select(flow_run.c.id).select_from(complete)
        self.read_by_key = self._read(flow_run.c.flow_id, flow_run.c.idempotency_key)
        self.read_by_id = self._read(flow_run.c.id)
        self.sizes_by_key = self._sizes(flow_run.c.flow_id, flow_run.c.idempotency_key)
        self.sizes_by_id = self._sizes(flow_run.c.id)
        id_, names = (deployment.c.id,), (flow.c.name, deployment.c.name)
        self.deployments_by_id, self.deployment_sizes_by_id = (
            self._deployments(*id_),
            self._deployment_sizes(*id_),
        )
        self.deployments_by_name, self.deployment_sizes_by_name = (
            self._deployments(*names),
            self._deployment_sizes(*names),
        )
        self.lookup = cache(self._lookup)

    def new_rows(self, runs: Iterable[FlowRun]) -> tuple[Any, ...]:
        """The parameters of :attr:`create`, and the first of :attr:`create_states`.

        SQLite gets one JSON text. PostgreSQL gets an array of texts, since it would take one apart
        at twice the price; and the points in time as an array of their own, each once, to which the
        numbers in the rows refer: it reads them from a text as slowly as all the rest.
        """
        instants: dict[datetime, int] = {}
        timestamp = self._timestamp or (lambda each: instants.setdefault(each, len(instants) + 1))
        rows, values = [], self._values
        for run in runs:
            row = list(values(run))
            for place in self._timestamps:
                if row[place] is not None:
                    row[place] = timestamp(row[place])
            for place in self._intervals:
                row[place] = self._interval(row[place])
            rows.append(dumps_text(row))
        return (f"[{','.join(rows)}]",) if self.sqlite else (rows, list(instants))

    def run_of(self, row: Sequence[Any]) -> FlowRun:
        """A run from a row of :attr:`read_by_key` or :attr:`read_by_id`."""
        values = map(_aware, row)
        run, state, pool = (
            dict(zip(names, values, strict=False)) for names in (self._names, self._state_names, _OF_POOL)
        )
        return FlowRun(**run, state=None if state["id"] is None else FlowRunState(**state), **pool)

    def _insert(self, columns: Sequence[sa.Column[Any]], first: int) -> str:
        names = ", ".join(f'"{column.name}"' for column in columns)
        values = (self._taken(column, first + number) for number, column in enumerate(columns))
        return f"INSERT INTO {columns[0].table.name} ({names}) SELECT {', '.join(values)}"

    def _taken(self, column: sa.Column[Any], place: int) -> str:
        """A column's value out of the JSON array of a row."""
        if isinstance(column.type, sa.JSON):
            return f"nullif(new.value -> {place}, 'null')" if column.nullable else f"new.value -> {place}"
        if self.sqlite:
            return f"new.value ->> {place}"
        if isinstance(column.type, sa.DateTime):
            return f"($2::timestamptz[])[(new.value ->> {place})::integer]"
        return f"(new.value ->> {place})::{column.type.compile(dialect=self._dialect)}"

    def _given(self, *keys: sa.Column[Any]) -> tuple[sa.FromClause, sa.ColumnElement[bool]]:
        """Rows that are handed over as the parameter ``given``, and the condition that these
        columns have their values.
        """
        given = sa.bindparam("given", type_=sa.String)
        each = sa.func.json_each(given)
        if not self.sqlite:
            each = sa.func.jsonb_array_elements(sa.cast(given, postgresql.JSONB))
        rows = each.table_valued("value", name="given")
        places = (rows.c.value.op("->>")(sa.literal_column(str(place))) for place in range(len(keys)))
        return rows, sa.and_(
            *(key == sa.cast(place, key.type) for key, place in zip(keys, places, strict=True))
        )

    def _read(self, *keys: sa.Column[Any]) -> sa.Select[Any]:
        rows, theirs = self._given(*keys)
        run, state = _shown(self._run), _shown(self.state_columns)
        found = rows.join(flow_run, theirs)
        found = found.outerjoin(flow_run_state, flow_run_state.c.id == flow_run.c.state_id)
        if not self.prefect:
            return sa.select(*run, *state).select_from(found)
        # ``FlowRunState.data``: older states keep it themselves, newer ones in an artifact.
        in_artifact: Any = artifact.c.data if self.sqlite else sa.cast(artifact.c.data, Json)
        data = sa.func.coalesce(flow_run_state.c.data, in_artifact, type_=Json)
        state = [data if each is flow_run_state.c.data else each for each in state]
        result: Any = sa.literal_column("flow_run_state.result_artifact_id", Uuid)
        found = (
            found.outerjoin(artifact, artifact.c.id == result)
            .outerjoin(work_queue, work_queue.c.id == flow_run.c.work_queue_id)
            .outerjoin(work_pool, work_pool.c.id == work_queue.c.work_pool_id)
        )
        pool = work_pool.c.id, work_pool.c.name, work_queue.c.name
        return sa.select(*run, *state, *pool).select_from(found)

    def _sizes(self, *keys: sa.Column[Any]) -> sa.Select[Any]:
        """Runs by id, flow and key, and how many characters their JSON has."""
        rows, theirs = self._given(*keys)
        found = rows.join(flow_run, theirs)
        found = found.outerjoin(flow_run_state, flow_run_state.c.id == flow_run.c.state_id)
        large = [column for column in self.columns if isinstance(column.type, sa.JSON)]
        if self.prefect:
            result: Any = sa.literal_column("flow_run_state.result_artifact_id", Uuid)
            found = found.outerjoin(artifact, artifact.c.id == result)
            large.append(artifact.c.data)
        size = reduce(
            operator.add, (sa.func.coalesce(sa.func.length(sa.cast(each, sa.Text)), 0) for each in large)
        )
        identity = flow_run.c.id, flow_run.c.flow_id, flow_run.c.idempotency_key
        return sa.select(*identity, size.label("size")).select_from(found)

    def read_columns(
        self, key: Sequence[sa.Column[Any]], columns: Sequence[sa.Column[Any]]
    ) -> sa.Select[Any]:
        """Some columns of runs and their states."""
        rows, theirs = self._given(*key)
        found = rows.join(flow_run, theirs)
        found = found.outerjoin(flow_run_state, flow_run_state.c.id == flow_run.c.state_id)
        return sa.select(*_shown(columns)).select_from(found)

    def _lookup(self, key: sa.Column[Any], *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        rows, theirs = self._given(key)
        shown = _shown(dict.fromkeys((key, *columns)))
        return sa.select(*shown).select_from(rows.join(key.table, theirs))

    def _deployments(self, *keys: sa.Column[Any]) -> sa.Select[Any]:
        """Deployments with what is asked of their flow, queue and pool; each pool's template once,
        with one of them. What is checked against is read as text: the same text has been prepared
        before, mostly. So are parameters, for their size.
        """
        texts = _texts_of_deployment()
        return self._of_deployments(
            keys,
            *(column for column in deployment.c if column.name not in {text.name for text in texts}),
            *texts,
            flow.c.name.label("flow_name"),
            work_queue.c.name.label("queue_name"),
            work_pool.c.id.label("pool_id"),
            work_pool.c.name.label("pool_name"),
        )

    def _deployment_sizes(self, *keys: sa.Column[Any]) -> sa.Select[Any]:
        """Deployments by id and names, and how many characters their texts have."""
        sizes = (sa.func.coalesce(sa.func.length(text), 0) for text in _texts_of_deployment())
        size = reduce(operator.add, sizes)
        names = deployment.c.id, deployment.c.name, flow.c.name.label("flow_name")
        return self._of_deployments(keys, *names, size.label("size"))

    def _of_deployments(self, keys: Sequence[sa.Column[Any]], *shown: Any) -> sa.Select[Any]:
        rows, theirs = self._given(*keys)
        return sa.select(*shown).select_from(
            rows.join(deployment, sa.true())
            .join(flow, sa.and_(flow.c.id == deployment.c.flow_id, theirs))
            .outerjoin(work_queue, work_queue.c.id == deployment.c.work_queue_id)
            .outerjoin(work_pool, work_pool.c.id == work_queue.c.work_pool_id)
        )


def _texts_of_deployment() -> list[sa.Label[Any]]:
    of = deployment.c
    texts: list[sa.Label[Any]] = [
        sa.cast(column, sa.Text).label(column.name)
        for column in (of.parameters, of.parameter_openapi_schema, of.infra_overrides)
    ]
    first = sa.func.row_number().over(partition_by=work_pool.c.id, order_by=of.id) == 1
    template = work_pool.c.base_job_template
    return [*texts, sa.case((first, sa.cast(template, sa.Text))).label(template.name)]


def given(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """The parameter of what reads."""
    return {"given": dumps_text(list(rows))}


def _aware(value: Any) -> Any:
    """A point in time with its zone: asyncpg reads ``infinity`` as the last one without."""
    if type(value) is datetime and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def bound(table: sa.Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for an INSERT or UPDATE; a state's type as text (see :func:`_shown`)."""
    return {
        name: sa.cast(sa.literal(value, sa.String), column.type)
        if isinstance((column := table.columns[name]).type, sa.Enum)
        else value
        for name, value in values.items()
    }


def _shown(columns: Iterable[Any]) -> list[Any]:
    """Columns as they are read. A state's type is text: a newer Prefect may have more of them, and
    asyncpg would set the session to look up what it is.
    """
    return [
        sa.cast(column, sa.String).label(column.name) if isinstance(column.type, sa.Enum) else column
        for column in columns
    ]


def _as_text(type_: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Callable[[Any], Any] | None:
    """How a value is written where the database keeps it as text; None where it has a type."""
    write = type_.dialect_impl(dialect).bind_processor(dialect)
    # A new run has the same one ten times.
    return None if write is None else lru_cache(maxsize=16)(write)
