"""The fields of requests as keyword arguments."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypedDict
from uuid import UUID


class _FieldsOfBoth(TypedDict, total=False):
    name: str
    state: Mapping[str, Any] | str
    parameters: Mapping[str, Any]
    context: Mapping[str, Any]
    parent_task_run_id: UUID | str
    infrastructure_document_id: UUID | str
    empirical_policy: Mapping[str, Any]
    tags: list[str]
    labels: Mapping[str, bool | int | float | str]
    idempotency_key: str
    work_queue_name: str
    job_variables: Mapping[str, Any]


class FlowRunFields(_FieldsOfBoth, total=False):
    """A request's optional fields, which :class:`worker.contract.request.CreateFlowRun` explains.
    In all requests of the client a state may be just its type, such as ``"SCHEDULED"``.
    """

    flow_version: str
    work_pool_name: str
    deployment_id: UUID | str


class DeploymentRunFields(_FieldsOfBoth, total=False):
    """The same for a run of a deployment, which
    :class:`worker.contract.deployment_request.CreateFlowRunFromDeployment` explains.
    """

    enforce_parameter_schema: bool


def checked(fields: Any, known: type[Any]) -> dict[str, Any]:
    """The fields of a request. Raises TypeError for an unknown one."""
    names = known.__annotations__
    for name in fields.keys() - names.keys():
        near = get_close_matches(name, names, n=1)
        raise TypeError(f"A flow run has no field '{name}'" + "".join(f"; is it '{each}'?" for each in near))
    return dict(fields)


def named_deployment(deployment: UUID | str) -> dict[str, Any]:
    """The field with a deployment's id or name."""
    try:
        return {"deployment_id": UUID(str(deployment))}
    except ValueError:
        return {"deployment_name": deployment}
