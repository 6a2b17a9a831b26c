"""The index for reading states in their order, as Prefect has it."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the index."""
    op.create_index("ix_flow_run_state__updated", "flow_run_state", ["updated"])
