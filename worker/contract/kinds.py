"""The kinds of requests, by the type of their message. A new kind needs an entry with its model
here, and one in :data:`worker.runs.creation.RUNS` with the function for its requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from .deployment_request import CreateFlowRunFromDeployment
from .read_request import ReadFlowRun
from .request import CreateFlowRun


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A kind of request.

    Attributes:
        model: of its body.
        type: the message's AMQP property ``type``.
        title: a line for the documents.
        creates: its requests make runs, and become dead letters if they are refused.
    """

    model: type[BaseModel]
    type: str
    title: str
    creates: bool = True

    @property
    def file(self) -> str:
        """The name of its JSON Schema's file."""
        return self.type.replace("_", "-")

    @property
    def message(self) -> str:
        """Its message's name in the AsyncAPI document."""
        first, *others = self.type.split("_")
        return first + "".join(map(str.capitalize, others))


CREATE = Kind(CreateFlowRun, "create_flow_run", "Create a flow run, once per flow and idempotency key")
FROM_DEPLOYMENT = Kind(
    CreateFlowRunFromDeployment,
    "create_flow_run_from_deployment",
    "Create a run of a deployment, once per flow and idempotency key",
)
READ = Kind(ReadFlowRun, "read_flow_run", "Read a flow run as it is now", creates=False)
KINDS = (CREATE, FROM_DEPLOYMENT, READ)
_BY_TYPE: dict[str | None, Kind] = {kind.type: kind for kind in KINDS}
# The bodies as a client may write them.
Model = CreateFlowRun | CreateFlowRunFromDeployment | ReadFlowRun


def names_deployment(fields: Mapping[str, Any]) -> bool:
    """Whether a body's fields can only mean a run of a deployment: there is no flow."""
    deployment = fields.get("deployment_name") or fields.get("deployment_id")
    return fields.get("flow_id") is None and deployment is not None


def is_kind(type: str | None) -> bool:
    """Whether a message's type names a kind of requests."""
    return type in _BY_TYPE


def kind_of(type: str | None) -> Kind:
    """The kind of a message's type. A missing or unknown type is a create request."""
    return _BY_TYPE.get(type, CREATE)
