"""The controls of a fake: a test adds deployments, moves runs on, makes calls fail, and looks at
the requests.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID, uuid4

from pydantic import BaseModel

from ...contract.encoding import dumps_text
from ...contract.record import FlowRunRecord, encode_record
from ...contract.state import TERMINAL_STATES, StateType
from ...contract.states import States
from ...runs.completion import Referred
from ...runs.deployments.deployment import Deployment
from ..errors import (
    ClientError,
    Conflict,
    FlowRunRefused,
    InvalidFlowRun,
    NotFound,
    StatesNotTold,
    WaitTimedOut,
)
from ..replies import record_of
from .interception import intercepted
from .rows import DEFAULT_QUEUE, as_text
from .sent import SentRequest
from .world import ON_DEMAND, Fault, When, World

State = StateType | str
Run = FlowRunRecord | UUID | str
Error = ClientError | type[ClientError]

_STATUS: Mapping[Any, int] = {FlowRunRefused: 400, NotFound: 404, Conflict: 409, InvalidFlowRun: 422}


class Controls:
    """The controls of a fake. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._world = World()
        self._rows = self._world.rows

    # What there is.

    def flow(
        self,
        name: str,
        *,
        id: UUID | str | None = None,
        tags: Iterable[str] | None = None,
        labels: Mapping[str, Any] | None = None,
        ends: State | None = None,
    ) -> UUID:
        """Add a flow, or change the given fields of the one with this name. Returns its id.

        Args:
            id: its id (default: a new one).
            tags, labels: as in Prefect. Runs inherit the labels.
            ends: the state that its runs end in by themselves, as soon as they exist.
        """
        old = self._rows.flow(name) or Referred(uuid4(), name, labels={})
        flow = Referred(
            old.id if id is None else UUID(str(id)),
            name,
            labels=old.labels if labels is None else dict(labels),
            tags=old.tags if tags is None else list(tags),
        )
        self._rows.put_flow(flow)
        if ends is not None:
            self._rows.ends[flow.id] = _state(ends, terminal=True)
        return flow.id

    def deployment(
        self,
        name: str,
        *,
        schema: Mapping[str, Any] | type[BaseModel] | None = None,
        enforce_parameter_schema: bool = True,
        parameters: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        labels: Mapping[str, Any] | None = None,
        job_variables: Mapping[str, Any] | None = None,
        version: str | None = None,
        work_pool: str | None = None,
        work_queue: str = DEFAULT_QUEUE,
        id: UUID | str | None = None,
        ends: State | None = None,
    ) -> UUID:
        """Add a deployment, with its flow and its work pool if they are missing, or replace the one
        of this name. Returns its id.

        Args:
            name: ``FLOW NAME/DEPLOYMENT NAME``.
            schema: of its parameters: a JSON Schema, or a pydantic model. None allows all.
            parameters, tags, labels, job_variables, version: as in Prefect.
            id: its id (default: a new one).
            ends: the state that its runs end in by themselves, as soon as they exist.
        """
        flow_name, _, own_name = name.partition("/")
        if not flow_name or not own_name or "/" in own_name:
            raise ValueError(f"'{name}' is no deployment's name: it has the form FLOW NAME/DEPLOYMENT NAME")
        flow = self._rows.flow(flow_name)
        old = self._rows.deployment(name)
        deployment_id = UUID(str(id)) if id is not None else old.id if old else uuid4()
        if isinstance(schema, type):
            schema = schema.model_json_schema()
        text = dumps_text(parameters or {})
        queue = self._rows.pool(work_pool).queue(work_queue) if work_pool is not None else None
        self._rows.put_deployment(
            Deployment(
                id=deployment_id,
                flow_id=flow.id if flow else self.flow(flow_name),
                flow_name=flow_name,
                name=own_name,
                version=version,
                tags=list(tags),
                labels=dict(labels or {}),
                parameters=json.loads(text),
                size=len(text),
                deep=True,
                described=True,
                parameter_schema=as_text(schema or {}),
                enforce_parameter_schema=enforce_parameter_schema,
                job_variables=as_text(job_variables or {}),
                infrastructure_document_id=None,
                work_queue_id=queue.id if queue else None,
                work_queue_name=queue.name if queue else None,
                queue=queue,
                job_template=None,
            )
        )
        self._rows.ends[deployment_id] = None if ends is None else _state(ends, terminal=True)
        return deployment_id

    def work_pool(
        self, name: str, *, queues: Iterable[str] = (), template: Mapping[str, Any] | None = None
    ) -> None:
        """Add a work pool, or change the one of this name.

        Args:
            queues: its queues besides ``default``.
            template: its base job template, which job variables have to fit. None allows all.
        """
        self._rows.put_template(name, as_text(template))
        for queue in queues:
            self._rows.pool(name).queue(queue)

    def variable(self, name: str, value: Any) -> None:
        """Add a workspace variable, for parameters of the kind ``workspace_variable``."""
        self._rows.variables[name] = json.loads(dumps_text(value))

    @property
    def strict(self) -> bool:
        """Whether ids of flows, parent task runs and block documents that were not added are
        refused, as in a Prefect server's database. By default each stands for a row, as in a
        database of the worker's own. Names have to be added in any case.
        """
        return self._rows.strict

    @strict.setter
    def strict(self, strict: bool) -> None:
        self._rows.strict = strict

    @property
    def worker_states(self) -> States:
        """Which states are published, as by the setting WORKER_STATES: ``all`` (the default),
        ``final`` or ``off``.
        """
        return self._rows.states

    @worker_states.setter
    def worker_states(self, states: States) -> None:
        self._rows.states = states

    # What happened.

    @property
    def requests(self) -> list[SentRequest]:
        """The requests that were sent, in their order. A request that was found wrong before it was
        sent is not among them. Clear the list to start anew.
        """
        return self._world.requests

    @property
    def runs(self) -> list[FlowRunRecord]:
        """The runs, as they are now, in the order of their creation."""
        now = datetime.now(UTC)
        return [record_of(encode_record(run, now)) for run in list(self._rows.runs)]

    # What is to happen.

    def finish(
        self,
        run: Run,
        state: State = StateType.COMPLETED,
        *,
        name: str | None = None,
        message: str | None = None,
        data: Any = None,
    ) -> FlowRunRecord:
        """Let a run end. Returns it as it is then.

        Args:
            run: a record or an id.
            state: COMPLETED, FAILED, CANCELLED or CRASHED.
            name, message, data: of the state.

        Raises:
            LookupError: there is no such run.
            ValueError: the state is none of these.
        """
        _state(state, terminal=True)
        return self.set_state(run, state, name=name, message=message, data=data)

    def set_state(
        self, run: Run, state: State, *, name: str | None = None, message: str | None = None, data: Any = None
    ) -> FlowRunRecord:
        """Move a run to any state. Otherwise like :meth:`finish`."""
        run_id = run.id if isinstance(run, FlowRunRecord) else UUID(str(run))
        return self._world.set_state(run_id, _state(state), name=name, message=message, data=data)

    def fail_next(
        self, error: Error, times: int = 1, *, served: bool = False, when: When | None = None
    ) -> None:
        """Let the next call fail that sends a request. A :class:`worker.client.WaitTimedOut` and a
        :class:`worker.client.StatesNotTold` end the next wait.

        Args:
            error: a ClientError, or its class, such as :class:`worker.client.NoReply`.
            times: how many calls fail so.
            served: serve the request, and lose only its reply. Then ``maybe_sent`` is true.
            when: whether it is about a request, given as in :attr:`requests` (default: any).
        """
        kind = error if isinstance(error, type) else type(error)
        if not issubclass(kind, ClientError):
            raise TypeError(f"{kind.__name__} is no ClientError, and no call of a client raises others")
        if issubclass(kind, (WaitTimedOut, StatesNotTold)):
            self._world.wait_faults.extend([error] * times)
        elif error in _STATUS:
            self.refuse_next(_STATUS[error], ON_DEMAND, times, when=when)
        else:
            self._world.faults.extend([Fault(error, served, when)] * times)

    def refuse_next(self, status: int, reason: str, times: int = 1, *, when: When | None = None) -> None:
        """Let the next request be refused.

        Args:
            status: from 400 to 422, as a worker may answer.
            reason: in one line.
            times: how many requests are refused so.
            when: as of :meth:`fail_next`.
        """
        if not 400 <= status < 500:
            raise ValueError(f"The status {status} is no refusal: it has to be from 400 to 499")
        self._world.faults.extend([Fault.refusal(status, reason, when)] * times)

    @contextmanager
    def intercept(self) -> Iterator[Self]:
        """Answer all real clients of this process, blocking ones too, until the end of the block.
        So a program is tested that makes its own client.
        """
        with intercepted(self._world):
            yield self


def _state(state: State, *, terminal: bool = False) -> StateType:
    found = StateType(state.upper())
    if terminal and found not in TERMINAL_STATES:
        raise ValueError(f"A run does not end in the state {found.value}")
    return found
