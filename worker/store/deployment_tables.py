"""Tables of a Prefect server's database that only runs of deployments need, with the columns that
are read or written.
"""

import sqlalchemy as sa

from worker.store.tables import Json, Text, Timestamp, Uuid

metadata = sa.MetaData()

flow = sa.Table("flow", metadata, sa.Column("id", Uuid), sa.Column("name", Text))
deployment = sa.Table(
    "deployment",
    metadata,
    sa.Column("id", Uuid),
    sa.Column("name", Text),
    sa.Column("flow_id", Uuid),
    sa.Column("version", Text),
    sa.Column("tags", Json),
    sa.Column("labels", Json),
    sa.Column("parameters", Json),
    sa.Column("parameter_openapi_schema", Json),
    sa.Column("enforce_parameter_schema", sa.Boolean),
    sa.Column("infra_overrides", Json),
    sa.Column("infrastructure_document_id", Uuid),
    sa.Column("work_queue_id", Uuid),
    sa.Column("work_queue_name", Text),
)
work_queue = sa.Table(
    "work_queue",
    metadata,
    sa.Column("id", Uuid),
    sa.Column("created", Timestamp),
    sa.Column("updated", Timestamp),
    sa.Column("name", Text),
    sa.Column("work_pool_id", Uuid),
    sa.Column("priority", sa.Integer),
)
work_pool = sa.Table(
    "work_pool",
    metadata,
    sa.Column("id", Uuid),
    sa.Column("name", Text),
    sa.Column("base_job_template", Json),
)
variable = sa.Table("variable", metadata, sa.Column("name", Text), sa.Column("value", Json))
