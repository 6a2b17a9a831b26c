"""The store's statements for both kinds of database, from one list of columns. Knows no connection.

Many rows are one parameter: each row is a JSON array with a place for each column. Thousands of
parameters would take longer to compile and bind than the rows take to store.
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

# Fields of a run that are read from the rows of its work pool and work queue.
_OF_POOL = ("work_pool_id", "work_pool_name", "pool_queue_name")
# Rows are read by these keys: an id, or two values.
_RUN_KEYS = (flow_run.c.id,), (flow_run.c.flow_id, flow_run.c.idempotency_key)
_DEPLOYMENT_KEYS = (deployment.c.id,), (flow.c.name, deployment.c.name)
# No conflict target, since the primary key counts too: a run's id may be its message's fingerprint.
_UNLESS_THERE = "ON CONFLICT DO NOTHING"
# Deployments whose names are compared with a wrong one.
NAMES_MAX = 100


class Statements:
    """The statements for one database.

    Args:
        dialect: of the database's engine.
        prefect: the database is a Prefect server's.
        lacks: the columns of :func:`worker.contract.flow_run.since` that it does not have, as
            ``TABLE.COLUMN``.

    Attributes:
        prefect, lacks: as given.
        columns: those of a run and its state that are written and read.
        sqlite: true for SQLite, false for PostgreSQL.
        create: inserts the runs that don't exist, and returns their ids. On PostgreSQL it inserts
            their states as well.
        create_plainly: the same, but fails if a run exists.
        complete: selects the given ids of runs that exist together with their states.
        create_states: SQLite's: inserts the states of the runs whose ids are its second parameter.
        runs: runs by id, and by flow and idempotency key.
        run_sizes: the sizes of the runs that :attr:`runs` would read.
        runs_of_states: runs by the id of one of their states, which takes the place of the current
            state.
        run_sizes_of_states: the sizes of these runs, with the ids of the states.
        deployments: deployments by id, and by the names of flow and deployment.
        deployment_sizes: their sizes.
        deployment_names: the names of at most :data:`NAMES_MAX` deployments, by the flows' names.
        lookup: makes a statement that reads columns, from the rows in which the first column has
            one of the given values.
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
            # Without MATERIALIZED, SQLite evaluates the array again for each column. Without WHERE
            # true, it parses ON CONFLICT as a join's condition.
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
        self.runs = [self._read(key) for key in _RUN_KEYS]
        self.run_sizes = [self._sizes(key) for key in _RUN_KEYS]
        self.runs_of_states = self._read((flow_run_state.c.id,))
        self.run_sizes_of_states = self._sizes((flow_run_state.c.id,))
        self.deployments = [self._deployments(key) for key in _DEPLOYMENT_KEYS]
        self.deployment_sizes = [self._deployment_sizes(key) for key in _DEPLOYMENT_KEYS]
        self.deployment_names = self._deployment_names()
        self.lookup = cache(self._lookup)

    def new_rows(self, runs: Iterable[FlowRun]) -> tuple[Any, ...]:
        """The parameters of :attr:`create`, and the first of :attr:`create_states`.

        SQLite gets one JSON text. PostgreSQL gets an array of texts, since taking one text apart
        would cost twice as much. Each distinct timestamp is sent once, in a second array; rows hold
        its index. Parsing timestamps from text would take as long as all the rest.
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
        """A run from a row of :attr:`runs` or :attr:`runs_of_states`."""
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
        """The SQL expression that takes a column's value from a row's JSON array."""
        if isinstance(column.type, sa.JSON):
            return f"nullif(new.value -> {place}, 'null')" if column.nullable else f"new.value -> {place}"
        if self.sqlite:
            return f"new.value ->> {place}"
        if isinstance(column.type, sa.DateTime):
            return f"($2::timestamptz[])[(new.value ->> {place})::integer]"
        return f"(new.value ->> {place})::{column.type.compile(dialect=self._dialect)}"

    def _given(self, *keys: sa.Column[Any]) -> tuple[sa.FromClause, sa.ColumnElement[bool]]:
        """The rows of the parameter ``given``, and the condition that ``keys`` equal them."""
        given = sa.bindparam("given", type_=sa.String)
        each = sa.func.json_each(given)
        if not self.sqlite:
            each = sa.func.jsonb_array_elements(sa.cast(given, postgresql.JSONB))
        rows = each.table_valued("value", name="given")
        places = (rows.c.value.op("->>")(sa.literal_column(str(place))) for place in range(len(keys)))
        return rows, sa.and_(
            *(key == sa.cast(place, key.type) for key, place in zip(keys, places, strict=True))
        )

    def _runs(self, key: Sequence[sa.Column[Any]]) -> sa.Join:
        """The runs with the given keys, with their states and the artifacts of these. A state's key
        gives that state of the run, not the current one.
        """
        rows, theirs = self._given(*key)
        if key[0].table is flow_run_state:
            runs = rows.join(flow_run_state, theirs)
            runs = runs.join(flow_run, flow_run.c.id == flow_run_state.c.flow_run_id)
        else:
            runs = rows.join(flow_run, theirs)
            runs = runs.outerjoin(flow_run_state, flow_run_state.c.id == flow_run.c.state_id)
        if not self.prefect:
            return runs
        result: Any = sa.literal_column("flow_run_state.result_artifact_id", Uuid)
        return runs.outerjoin(artifact, artifact.c.id == result)

    def _read(self, key: Sequence[sa.Column[Any]]) -> sa.Select[Any]:
        run, state, found = _shown(self._run), _shown(self.state_columns), self._runs(key)
        if not self.prefect:
            return sa.select(*run, *state).select_from(found)
        # Older states keep ``FlowRunState.data`` themselves, newer ones in an artifact.
        in_artifact: Any = artifact.c.data if self.sqlite else sa.cast(artifact.c.data, Json)
        data = sa.func.coalesce(flow_run_state.c.data, in_artifact, type_=Json)
        state = [data if each is flow_run_state.c.data else each for each in state]
        found = found.outerjoin(work_queue, work_queue.c.id == flow_run.c.work_queue_id)
        found = found.outerjoin(work_pool, work_pool.c.id == work_queue.c.work_pool_id)
        pool = work_pool.c.id, work_pool.c.name, work_queue.c.name
        return sa.select(*run, *state, *pool).select_from(found)

    def _sizes(self, key: Sequence[sa.Column[Any]]) -> sa.Select[Any]:
        """The ids, flows and keys of runs, and the number of characters of their JSON."""
        large = [column for column in self.columns if isinstance(column.type, sa.JSON)]
        if self.prefect:
            large.append(artifact.c.data)
        size = _characters(sa.cast(each, sa.Text) for each in large)
        identity = flow_run.c.id, flow_run.c.flow_id, flow_run.c.idempotency_key
        state_id = flow_run_state.c.id.label("state_id")
        return sa.select(*identity, state_id, size).select_from(self._runs(key))

    def run_columns(self, columns: Sequence[sa.Column[Any]]) -> list[sa.Select[Any]]:
        """Statements as :attr:`runs`, for these columns of runs and their states only."""
        return [sa.select(*_shown(columns)).select_from(self._runs(key)) for key in _RUN_KEYS]

    def _lookup(self, key: sa.Column[Any], *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        rows, theirs = self._given(key)
        shown = _shown(dict.fromkeys((key, *columns)))
        return sa.select(*shown).select_from(rows.join(key.table, theirs))

    def _deployments(self, key: Sequence[sa.Column[Any]]) -> sa.Select[Any]:
        """Deployments, with columns of their flow, queue and pool. One deployment of each pool has
        the pool's template. Schema and template are read as text, which is the key of a prepared
        check. Parameters are read as text for their size.
        """
        texts = _texts_of_deployment()
        return self._of_deployments(
            key,
            *(column for column in deployment.c if column.name not in {text.name for text in texts}),
            *texts,
            flow.c.name.label("flow_name"),
            work_queue.c.name.label("queue_name"),
            work_pool.c.id.label("pool_id"),
            work_pool.c.name.label("pool_name"),
        )

    def _deployment_sizes(self, key: Sequence[sa.Column[Any]]) -> sa.Select[Any]:
        """The ids and names of deployments, and the number of characters of their texts."""
        names = deployment.c.id, deployment.c.name, flow.c.name.label("flow_name")
        return self._of_deployments(key, *names, _characters(_texts_of_deployment()))

    def _deployment_names(self) -> sa.Select[Any]:
        """The names of some deployments of flows, by the flows' names."""
        rows, theirs = self._given(flow.c.name)
        found = rows.join(flow, theirs).join(deployment, deployment.c.flow_id == flow.c.id)
        names = sa.select(deployment.c.name, flow.c.name.label("flow_name"))
        return names.select_from(found).limit(NAMES_MAX)

    def _of_deployments(self, key: Sequence[sa.Column[Any]], *shown: Any) -> sa.Select[Any]:
        rows, theirs = self._given(*key)
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


def _characters(texts: Iterable[sa.ColumnElement[Any]]) -> sa.Label[Any]:
    sizes = (sa.func.coalesce(sa.func.length(text), 0) for text in texts)
    return reduce(operator.add, sizes).label("size")


def given(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """The parameter of the reading statements."""
    return {"given": dumps_text(list(rows))}


def _aware(value: Any) -> Any:
    """Add the zone to a timestamp without one: asyncpg reads ``infinity`` as ``datetime.max``."""
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
    """Columns as they are read. A state's type is read as text: a newer Prefect may have more
    types, and asyncpg would set the session to look up the enum's values.
    """
    return [
        sa.cast(column, sa.String).label(column.name) if isinstance(column.type, sa.Enum) else column
        for column in columns
    ]


def _as_text(type_: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Callable[[Any], Any] | None:
    """The function that writes a value as text; None if the database has a type for it."""
    write = type_.dialect_impl(dialect).bind_processor(dialect)
    # A new run has the same timestamp ten times.
    return None if write is None else lru_cache(maxsize=16)(write)
