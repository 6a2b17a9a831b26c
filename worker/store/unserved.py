"""Warns of runs of a deployment that wait for a worker of a work pool which does not see them."""

from collections.abc import Iterable
from uuid import UUID

import structlog

from worker.contract.decode import CreateRequest
from worker.contract.state import StateType
from worker.creation import NewRun

log = structlog.get_logger(__name__)

# Of so many deployments it is remembered that a warning was given. A guess.
REMEMBERED = 1000


class UnservedWarning:
    """One line in the log for each deployment."""

    def __init__(self) -> None:
        self._warned: set[UUID] = set()

    def look(self, runs: Iterable[NewRun]) -> None:
        """Warn of a SCHEDULED run of a deployment that has no work queue."""
        for new in runs:
            run = new.run
            deployment_id = run.deployment_id
            if (
                deployment_id is None
                or run.work_queue_id is not None
                or run.state_type != StateType.SCHEDULED.value
                or deployment_id in self._warned
            ):
                continue
            if len(self._warned) >= REMEMBERED:
                self._warned.clear()
            self._warned.add(deployment_id)
            reason = (
                "the request names no work_pool_name; with the type create_flow_run_from_deployment the run "
                "has the deployment's"
                if isinstance(new.request, CreateRequest)
                else "the deployment has no work pool"
            )
            log.warning(
                "run_without_work_pool",
                deployment_id=str(deployment_id),
                flow_run_id=str(run.id),
                reason=reason,
                executed="only by a process that serves the deployment",
            )
