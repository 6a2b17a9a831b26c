"""The two tables, with the unique index that allows one run per flow and key."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql, sqlite

revision = "0001"
down_revision = None

STATES = (
    "SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED", "CANCELLING"
)  # fmt: skip


def upgrade() -> None:
    """Create the tables."""
    uuid = sa.Uuid().with_variant(sa.CHAR(36), "sqlite")
    timestamp = sa.TIMESTAMP(timezone=True).with_variant(sa.DateTime(), "sqlite")
    json = postgresql.JSONB().with_variant(sqlite.JSON(), "sqlite")
    state = sa.Enum(*STATES, name="state_type").with_variant(
        postgresql.ENUM(*STATES, name="state_type", create_type=False), "postgresql"
    )
    if op.get_bind().dialect.name == "postgresql":
        postgresql.ENUM(*STATES, name="state_type").create(op.get_bind())
    op.create_table(
        "flow_run",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("created", timestamp, nullable=False, server_default=sa.func.now()),
        sa.Column("updated", timestamp, nullable=False, server_default=sa.func.now()),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("flow_id", uuid, nullable=False),
        sa.Column("state_id", uuid),
        sa.Column("state_type", state),
        sa.Column("state_name", sa.String),
        sa.Column("state_timestamp", timestamp),
        sa.Column("run_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("expected_start_time", timestamp),
        sa.Column("next_scheduled_start_time", timestamp),
        sa.Column("start_time", timestamp),
        sa.Column("end_time", timestamp),
        sa.Column("total_run_time", sa.Interval, nullable=False),
        sa.Column("deployment_id", uuid),
        sa.Column("deployment_version", sa.String),
        sa.Column("work_queue_id", uuid),
        sa.Column("work_queue_name", sa.String),
        sa.Column("flow_version", sa.String),
        sa.Column("parameters", json, nullable=False, server_default="{}"),
        sa.Column("idempotency_key", sa.String),
        sa.Column("context", json, nullable=False, server_default="{}"),
        sa.Column("empirical_policy", json, nullable=False, server_default="{}"),
        sa.Column("tags", json, nullable=False, server_default="[]"),
        sa.Column("labels", json),
        sa.Column("created_by", json),
        sa.Column("infrastructure_pid", sa.String),
        sa.Column("infrastructure_document_id", uuid),
        sa.Column("parent_task_run_id", uuid),
        sa.Column("auto_scheduled", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("job_variables", json, server_default="{}"),
    )
    op.create_index(
        "uq_flow_run__flow_id_idempotency_key", "flow_run", ["flow_id", "idempotency_key"], unique=True
    )
    op.create_table(
        "flow_run_state",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("created", timestamp, nullable=False, server_default=sa.func.now()),
        sa.Column("updated", timestamp, nullable=False, server_default=sa.func.now()),
        sa.Column("flow_run_id", uuid, sa.ForeignKey("flow_run.id", ondelete="CASCADE"), nullable=False),
        sa.Column("type", state, nullable=False),
        sa.Column("timestamp", timestamp, nullable=False, server_default=sa.func.now()),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("message", sa.String),
        sa.Column("state_details", json, nullable=False, server_default="{}"),
        sa.Column("data", json),
    )
    op.create_index(
        "uq_flow_run_state__flow_run_id_timestamp_desc",
        "flow_run_state",
        ["flow_run_id", sa.text("timestamp DESC")],
        unique=True,
    )
