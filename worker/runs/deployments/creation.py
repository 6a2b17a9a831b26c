"""Makes the rows of a new run: merges the request with its deployment, and checks that they fit."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from ...contract.deployment_request import CreateFlowRunFromDeployment
from ...contract.encoding import dumps
from ...contract.errors import DeploymentNotFound, NoWorkPool, ParametersTooLarge
from ...contract.request import NO_LIMIT
from ...contract.state import StateCreate, StateType
from ..creation import NewRun, UnresolvedRun, run_row, with_system_labels
from .checking import Checks, check_job_variables, check_parameters, renderer
from .deployment import Deployment
from .hydration import Variables, hydrate

_SCHEDULED = StateCreate(type=StateType.SCHEDULED)


def no_deployment(body: CreateFlowRunFromDeployment, meant: str = "") -> DeploymentNotFound:
    """The refusal of a request whose deployment does not exist.

    Args:
        meant: the name that was probably meant.
    """
    name = body.deployment_id if body.deployment_name is None else f"'{body.deployment_name}'"
    question = f": did you mean '{meant}'?" if meant else "."
    return DeploymentNotFound(f"There is no deployment {name}{question}")


def described_parameters(unresolved: UnresolvedRun, deployment: Deployment) -> dict[str, Any]:
    """The parameters that may describe their values. The request's parameters override the
    deployment's of the same name. A plain message's parameters are left out, since they are values
    themselves.
    """
    own = unresolved.request.body.parameters
    if not unresolved.request.plain:
        return {**deployment.parameters, **own}
    return {name: value for name, value in deployment.parameters.items() if name not in own}


def is_described(unresolved: UnresolvedRun, deployment: Deployment) -> bool:
    """Whether some parameter may be described by its kind. If not, nothing needs to be hydrated."""
    return unresolved.request.described or deployment.described


def hydrated_limit(unresolved: UnresolvedRun, deployment: Deployment) -> int:
    """The maximum size of hydrated parameters, in bytes of JSON; or :data:`NO_LIMIT`. The
    deployment's own parameters don't count against the request's limit.
    """
    limit = unresolved.request.max_parameter_size
    return NO_LIMIT if limit == NO_LIMIT else limit + deployment.size


def run_of_deployment(
    unresolved: UnresolvedRun,
    deployment: Deployment,
    *,
    variables: Variables,
    blocks: Collection[UUID],
    checks: Checks,
) -> NewRun:
    """Make the rows for a request (``create_flow_run_from_deployment``).

    If the request names another queue than the deployment's, the run has no ``work_queue_id`` yet.

    Args:
        variables: the workspace variables that the parameters need, by name.
        blocks: the existing block documents of the pool's template.
        checks: makes the checks.

    Raises:
        Refusal: as Prefect's endpoint answers, in the order of its checks.
        Pending: a check is under way.
    """
    request = unresolved.request
    body = request.body
    size = request.size + deployment.size
    described = described_parameters(unresolved, deployment)
    limit = hydrated_limit(unresolved, deployment)
    hydrated = described
    if is_described(unresolved, deployment):
        hydrated = hydrate(described, variables, renderer(checks, unresolved, deployment), limit)
    parameters = {**hydrated, **body.parameters} if request.plain else hydrated
    enforced = body.enforce_parameter_schema
    if deployment.enforce_parameter_schema if enforced is None else enforced:
        check_parameters(checks, deployment, parameters, size)
    if deployment.job_template is not None:
        check_job_variables(checks, deployment, body.job_variables, size, blocks)
    if body.work_queue_name and deployment.queue is None:
        raise NoWorkPool(body.work_queue_name, deployment.id)
    pool = deployment.queue
    queue = pool if pool is not None and body.work_queue_name in (None, "", pool.name) else None
    run = run_row(
        request,
        unresolved.run_id,
        body.state or _SCHEDULED,
        unresolved.now,
        unresolved.traceparent,
        flow_id=deployment.flow_id,
        flow_version=None,
        deployment_id=deployment.id,
        deployment_version=deployment.version,
        work_queue_name=body.work_queue_name or deployment.work_queue_name,
        work_queue_id=queue and queue.id,
        pool_queue_name=queue and queue.name,
        work_pool_id=pool and pool.pool_id,
        work_pool_name=pool and pool.pool_name,
        parameters=parameters,
        tags=list(dict.fromkeys((*deployment.tags, *body.tags))),
        labels=with_system_labels(deployment.labels or {}, deployment.flow_id, deployment.id, body.labels),
        infrastructure_document_id=body.infrastructure_document_id or deployment.infrastructure_document_id,
    )
    # A few bytes of the request may name a variable of some kilobytes, many times.
    added, deep = deployment.size, request.deep or deployment.deep
    if hydrated is not described:
        added, deep = len(dumps(parameters)), True
        if limit != NO_LIMIT and added > limit:
            raise ParametersTooLarge(limit)
    return NewRun(request, run, added, deep, inherits=True)
