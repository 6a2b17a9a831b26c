"""The parts of Prefect's tables that are read or written, with the names, types and storage formats
of its server. One definition serves both databases, and the check of a Prefect server's.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from worker.contract.flow_run import FlowRun, FlowRunState
from worker.contract.state import StateType

UNIQUE_INDEX = "uq_flow_run__flow_id_idempotency_key"


class HyphenatedUuid(sa.TypeDecorator[UUID]):
    """Prefect's format of a UUID on SQLite: 36 characters, with hyphens."""

    impl = sa.CHAR(36)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> UUID | None:
        return None if value is None else UUID(value)


class NaiveUtc(sa.TypeDecorator[datetime]):
    """Prefect's format of a timestamp on SQLite: UTC, without the zone."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


Uuid = sa.Uuid().with_variant(HyphenatedUuid(), "sqlite")
Timestamp = sa.TIMESTAMP(timezone=True).with_variant(NaiveUtc(), "sqlite")
Json = postgresql.JSONB(none_as_null=True).with_variant(sqlite.JSON(none_as_null=True), "sqlite")
State = sa.Enum(*(state.value for state in StateType), name="state_type")
Text = sa.String()

# The column type of each type of value. Other values are JSON.
_TYPES: dict[type, Any] = {
    UUID: Uuid,
    datetime: Timestamp,
    timedelta: sa.Interval,
    str: Text,
    int: sa.Integer,
    bool: sa.Boolean,
}

# The tables of both kinds of database, and those of a Prefect server's alone.
metadata, prefect_metadata = sa.MetaData(), sa.MetaData()


def _of_rows(name: str, row: type) -> sa.Table:
    """The table whose rows are of this dataclass, with a column for each field. Fields with a plain
    default come from other tables. ``info["since"]`` is the Prefect version that brought a column.
    """
    columns: list[sa.Column[Any]] = []
    hints = get_type_hints(row)
    for field in fields(row):
        hint = hints[field.name]
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        type_ = State if field.name in ("state_type", "type") else _TYPES.get(kinds[0], Json)
        if field.default is MISSING or "since" in field.metadata:
            nullable = NoneType in kinds or hint is Any
            columns.append(sa.Column(field.name, type_, nullable=nullable, info={**field.metadata}))
    return sa.Table(name, metadata, *columns)


def part_of(name: str, columns: Mapping[Any, str], metadata: sa.MetaData = prefect_metadata) -> sa.Table:
    """A table with the columns that are read or written: their names, by type."""
    named = (sa.Column(each, type_) for type_, names in columns.items() for each in names.split())
    return sa.Table(name, metadata, *named)


flow_run = _of_rows("flow_run", FlowRun)
flow_run_state = _of_rows("flow_run_state", FlowRunState)

flow = part_of("flow", {Uuid: "id", Text: "name", Json: "labels tags"})
deployment = part_of(
    "deployment",
    {
        Uuid: "id flow_id infrastructure_document_id work_queue_id",
        Text: "name version work_queue_name",
        Json: "tags labels parameters parameter_openapi_schema infra_overrides",
        sa.Boolean: "enforce_parameter_schema",
    },
)
work_queue = part_of(
    "work_queue",
    {Uuid: "id work_pool_id", Timestamp: "created updated", Text: "name", sa.Integer: "priority"},
)
work_pool = part_of("work_pool", {Uuid: "id default_queue_id", Text: "name type", Json: "base_job_template"})
variable = part_of("variable", {Text: "name", Json: "value"})
block_document = part_of("block_document", {Uuid: "id"})
artifact = part_of("artifact", {Uuid: "id flow_run_id", Text: "key", sa.JSON: "data"})
_TIMES = "expected_start_time next_scheduled_start_time start_time end_time"
task_run = part_of(
    "task_run",
    {
        Uuid: "id flow_run_id state_id",
        Timestamp: f"updated state_timestamp {_TIMES}",
        State: "state_type",
        Text: "name state_name",
        sa.Integer: "run_count",
        sa.Interval: "total_run_time",
        Json: "tags",
    },
)
task_run_state = part_of(
    "task_run_state",
    {
        Uuid: "id task_run_id",
        Timestamp: "created updated timestamp",
        State: "type",
        Text: "name message",
        Json: "state_details data",
    },
)
