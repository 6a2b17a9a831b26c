"""Prefect's tables ``flow_run`` and ``flow_run_state``: names, columns, types and storage formats
as its server makes them.

One definition serves both databases, the migrations of a database of our own, and the check of a
Prefect server's.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from worker.contract.state import StateType

metadata = sa.MetaData()

STATE_TYPE = "state_type"
UNIQUE_INDEX = "uq_flow_run__flow_id_idempotency_key"


class HyphenatedUuid(sa.TypeDecorator[UUID]):
    """A UUID as Prefect keeps it on SQLite: 36 characters, with hyphens."""

    impl = sa.CHAR(36)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> UUID | None:
        return None if value is None else UUID(value)


class NaiveUtc(sa.TypeDecorator[datetime]):
    """A point in time as Prefect keeps it on SQLite: UTC without saying so."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


Uuid = sa.Uuid().with_variant(HyphenatedUuid(), "sqlite")
Timestamp = sa.TIMESTAMP(timezone=True).with_variant(NaiveUtc(), "sqlite")
Json = postgresql.JSONB(none_as_null=True).with_variant(sqlite.JSON(none_as_null=True), "sqlite")
State = sa.Enum(*(state.value for state in StateType), name=STATE_TYPE)
Text = sa.String()


def part_of(metadata: sa.MetaData, name: str, columns: Mapping[Any, str]) -> sa.Table:
    """A table of Prefect's, as far as it is read or written: its columns' names by their types."""
    return sa.Table(
        name,
        metadata,
        *(sa.Column(each, type_) for type_, names in columns.items() for each in names.split()),
    )


flow_run = sa.Table(
    "flow_run",
    metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("created", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("updated", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("name", Text, nullable=False),
    sa.Column("flow_id", Uuid, nullable=False),
    sa.Column("state_id", Uuid),
    sa.Column("state_type", State),
    sa.Column("state_name", Text),
    sa.Column("state_timestamp", Timestamp),
    sa.Column("run_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("expected_start_time", Timestamp),
    sa.Column("next_scheduled_start_time", Timestamp),
    sa.Column("start_time", Timestamp),
    sa.Column("end_time", Timestamp),
    sa.Column("total_run_time", sa.Interval, nullable=False),
    sa.Column("deployment_id", Uuid),
    sa.Column("deployment_version", Text),
    sa.Column("work_queue_id", Uuid),
    sa.Column("work_queue_name", Text),
    sa.Column("flow_version", Text),
    sa.Column("parameters", Json, nullable=False, server_default="{}"),
    sa.Column("idempotency_key", Text),
    sa.Column("context", Json, nullable=False, server_default="{}"),
    sa.Column("empirical_policy", Json, nullable=False, server_default="{}"),
    sa.Column("tags", Json, nullable=False, server_default="[]"),
    sa.Column("labels", Json),
    sa.Column("created_by", Json),
    sa.Column("infrastructure_pid", Text),
    sa.Column("infrastructure_document_id", Uuid),
    sa.Column("parent_task_run_id", Uuid),
    sa.Column("auto_scheduled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("job_variables", Json, server_default="{}"),
    sa.Index(UNIQUE_INDEX, "flow_id", "idempotency_key", unique=True),
)

flow_run_state = sa.Table(
    "flow_run_state",
    metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("created", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("updated", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("flow_run_id", Uuid, sa.ForeignKey("flow_run.id", ondelete="CASCADE"), nullable=False),
    sa.Column("type", State, nullable=False),
    sa.Column("timestamp", Timestamp, nullable=False, server_default=sa.func.now()),
    sa.Column("name", Text, nullable=False),
    sa.Column("message", Text),
    sa.Column("state_details", Json, nullable=False, server_default="{}"),
    sa.Column("data", Json),
    sa.Index(
        "uq_flow_run_state__flow_run_id_timestamp_desc", "flow_run_id", sa.text("timestamp DESC"), unique=True
    ),
)
