"""What a Python producer imports: publish a request, or call and await the flow run record. Knows
no database.
"""

from worker.client.client import CreateOutcome, FlowRunClient, FlowRunFields
from worker.client.errors import (
    AccessRefused,
    BrokerGone,
    ClientError,
    Conflict,
    FlowRunRefused,
    InvalidFlowRun,
    MessageRefused,
    NoReply,
    NotFound,
    NotRoutable,
    NotSerializable,
    NotTaken,
)

__all__ = [
    "AccessRefused",
    "BrokerGone",
    "ClientError",
    "Conflict",
    "CreateOutcome",
    "FlowRunClient",
    "FlowRunFields",
    "FlowRunRefused",
    "InvalidFlowRun",
    "MessageRefused",
    "NoReply",
    "NotFound",
    "NotRoutable",
    "NotSerializable",
    "NotTaken",
]
