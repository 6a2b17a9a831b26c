"""In place of the broker, the worker and the database: records requests, answers them, and fails on
demand. No I/O.
"""

import threading
from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

from ...contract.errors import FlowRunNotFound, Refusal, Unprocessable
from ...contract.flow_run import FlowRun
from ...contract.record import FlowRunRecord, encode_record
from ...contract.state import StateType
from ...contract.states import told_types
from ..errors import ClientError, NoReply, NotConfirmed, StatesNotTold, UnreadableReply
from ..message import ClientMessage
from ..replies import Reply, record_of
from ..sender import no_confirm, no_reply
from .answers import answered, refused_with
from .moving import moved
from .rows import Rows
from .sent import SentRequest, sent_request
from .told import Told

ON_DEMAND = "The test wants this error."

When = Callable[[SentRequest], bool]


class _Refused(Refusal):
    """A refusal on demand."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason, Unprocessable(reason).body if status == 422 else None)
        self.status = status


@dataclass(frozen=True, slots=True)
class Fault:
    """How a call fails: by an error, which may be a class, or by a refusal.

    Attributes:
        served: only the reply is lost.
        when: whether it is about a request (default: any).
    """

    error: ClientError | type[ClientError] | Refusal
    served: bool = False
    when: When | None = None

    @classmethod
    def refusal(cls, status: int, reason: str, when: When | None) -> Self:
        """A refusal by the worker."""
        return cls(_Refused(status, reason), when=when)


class World:
    """Serves the requests of one fake, in any thread.

    Attributes:
        rows: flows, deployments and runs.
        requests: those that were sent.
        faults: the next ones of requests.
        wait_faults: the next ones of waits.
        told: tells the states of runs.
    """

    def __init__(self) -> None:
        self.rows = Rows()
        self.requests: list[SentRequest] = []
        self.faults: list[Fault] = []
        self.wait_faults: deque[ClientError | type[ClientError]] = deque()
        self.told = Told()
        self._lock = threading.RLock()

    def serve(self, message: ClientMessage, seconds: float, expires: float | None) -> Reply | None:
        """The reply to a message, if it wants one.

        Args:
            seconds, expires: as of the call.

        Raises:
            ClientError: the test wants it.
        """
        sent = sent_request(message, seconds, expires)
        with self._lock:
            self.requests.append(sent)
            fault = self._fault(sent)
            if fault is None:
                reply = self._serve(message, sent)
            elif isinstance(fault.error, Refusal):
                reply = refused_with(fault.error)
                _note(sent, reply)
            else:
                if fault.served:
                    self._serve(message, sent)
                sent.status = 0
                sent.error = _error(fault, message, seconds, expires)
                raise sent.error
            return reply if sent.reply else None

    def set_state(
        self, run_id: UUID, state: StateType, *, name: str | None, message: str | None, data: Any
    ) -> FlowRunRecord:
        """Move a run to another state. Raises LookupError if it does not exist."""
        with self._lock:
            run = self.rows.run(run_id)
            if run is None:
                raise LookupError(f"There is no run {run_id}")
            return self._move(run, state, name=name, message=message, data=data)

    def read(self, run_id: UUID) -> FlowRunRecord:
        """A run as it is now. Raises NotFound if it does not exist."""
        run = self.rows.run(run_id)
        if run is None:
            return refused_with(FlowRunNotFound(run_id)).record()
        return record_of(encode_record(run, datetime.now(UTC)))

    def check_states_told(self) -> None:
        """Raise StatesNotTold if no states are published, or if the test wants it."""
        if self.rows.states == "off":
            raise StatesNotTold("No states are told here: WORKER_STATES is off.")
        self.fail_wait(StatesNotTold)

    def fail_wait(self, kind: type[ClientError] = ClientError) -> None:
        """Raise the next error of a wait, if the test wants one of this kind."""
        with self._lock:
            if not self.wait_faults:
                return
            wanted = self.wait_faults[0]
            if issubclass(wanted if isinstance(wanted, type) else type(wanted), kind):
                self.wait_faults.popleft()
                raise wanted(ON_DEMAND) if isinstance(wanted, type) else copy(wanted)

    def _tell(self, record: FlowRunRecord) -> None:
        types = told_types(self.rows.states)
        if self.rows.states != "off" and (types is None or record.state_type in types):
            self.told.tell(record)

    def _move(self, run: FlowRun, state: StateType, **fields: Any) -> FlowRunRecord:
        now = datetime.now(UTC)
        run = moved(run, state, now, **({"name": None, "message": None, "data": None} | fields))
        self.rows.put_run(run)
        record = record_of(encode_record(run, now))
        self._tell(record)
        return record

    def _fault(self, sent: SentRequest) -> Fault | None:
        for place, fault in enumerate(self.faults):
            if fault.when is None or fault.when(sent):
                del self.faults[place]
                return fault
        return None

    def _serve(self, message: ClientMessage, sent: SentRequest) -> Reply:
        reply = answered(self.rows, message, datetime.now(UTC))
        _note(sent, reply)
        if reply.status == 201 and sent.record is not None:
            run = self.rows.run(sent.record.id)
            assert run is not None
            self._tell(sent.record)
            ends = self.rows.ends
            if state := (run.deployment_id and ends.get(run.deployment_id)) or ends.get(run.flow_id):
                self._move(run, state)
        return reply


def _note(sent: SentRequest, reply: Reply) -> None:
    """Note a reply, whether it was wanted or not."""
    sent.status = reply.status or 0
    try:
        sent.record = reply.record()
    except ClientError as error:
        sent.error = error


def _error(fault: Fault, message: ClientMessage, seconds: float, expires: float | None) -> ClientError:
    """The error of a call that fails on demand."""
    wanted, message_id = fault.error, str(message.properties.message_id)
    if isinstance(wanted, ClientError):
        error = copy(wanted)
    elif wanted is NoReply:
        error = no_reply(seconds, message_id, expires=expires is not None)
    elif wanted is NotConfirmed:
        error = no_confirm(seconds, message_id)
    elif wanted is UnreadableReply:
        error = UnreadableReply(ON_DEMAND, 200, b"")
    else:
        assert isinstance(wanted, type)
        error = wanted(ON_DEMAND)
    if fault.served:
        error.maybe_sent = True
    return error
