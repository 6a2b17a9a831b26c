"""Tables of a Prefect server's database that only runs of deployments need, with the columns that
are read or written.
"""

from functools import partial

import sqlalchemy as sa

from worker.store.tables import Json, Text, Timestamp, Uuid, part_of

metadata = sa.MetaData()
_table = partial(part_of, metadata)

flow = _table("flow", {Uuid: "id", Text: "name"})
deployment = _table(
    "deployment",
    {
        Uuid: "id flow_id infrastructure_document_id work_queue_id",
        Text: "name version work_queue_name",
        Json: "tags labels parameters parameter_openapi_schema infra_overrides",
        sa.Boolean: "enforce_parameter_schema",
    },
)
work_queue = _table(
    "work_queue",
    {Uuid: "id work_pool_id", Timestamp: "created updated", Text: "name", sa.Integer: "priority"},
)
work_pool = _table("work_pool", {Uuid: "id", Text: "name", Json: "base_job_template"})
variable = _table("variable", {Text: "name", Json: "value"})
