"""The worker's Prometheus metrics and its readiness. Metrics are counted once a batch, so they cost
a request next to nothing.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Literal, Protocol

from prometheus_client import Counter, Gauge, Histogram, Info

from worker import __version__
from worker.contract.delivery import Delivery
from worker.contract.state import StateType

# From half a millisecond (a commit on a fast disk) to half a minute (a database that was down).
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

requests = Counter("flow_run_worker_requests", "Requests answered and acknowledged.", ["outcome", "status"])
redelivered = Counter("flow_run_worker_redelivered", "Messages that the broker delivered again.")
replies_unroutable = Counter(
    "flow_run_worker_replies_unroutable", "Replies whose queue is missing or refuses messages."
)
reconnects = Counter("flow_run_worker_broker_reconnects", "Sessions with the broker after the first.")
database_retries = Counter(
    "flow_run_worker_database_retries", "Failed database operations that were retried."
)
dead_letters_held = Gauge(
    "flow_run_worker_dead_letters_held", "Dead letters that are held because their queue refuses them."
)
broker_blocked = Gauge(
    "flow_run_worker_broker_blocked", "1 while an alarm at the broker blocks publishing, otherwise 0."
)
_declared_again = Counter(
    "flow_run_worker_topology_declared_again",
    "Queues, exchanges and bindings that vanished from the broker and were declared again.",
    ["kind"],
)
for _kind in ("queue", "exchange", "binding"):
    _declared_again.labels(_kind)  # start at 0, so that the first one is an increase
_topology_faulty = Gauge(
    "flow_run_worker_topology_faulty",
    "1 while a queue, the exchange or the binding can't be checked, or is missing or wrong and can't be "
    "declared. Otherwise 0.",
)
_harmful_policies = Gauge(
    "flow_run_worker_harmful_policies",
    "Policy settings that drop, expire or limit messages of the worker's queues. 0 if there are none, or "
    "they can't be read.",
)
events_total = Counter("flow_run_worker_events", "Events of new runs, by outcome.", ["outcome"])
for _outcome in ("delivered", "refused", "left_out", "forged"):
    events_total.labels(_outcome)  # start at 0
outbox_age = Gauge(
    "flow_run_worker_events_outbox_age_seconds",
    "Age of the oldest event that waits for Prefect's API. 0 if none waits, and in workers that send none.",
)
outbox_messages = Gauge(
    "flow_run_worker_events_outbox_messages",
    "Messages in the outbox, each with 1 to 200 events. 0 in workers that send none.",
)
_states_told = Counter("flow_run_worker_states_told", "States of runs that were told.", ["type"])
for _type in StateType:
    _states_told.labels(_type.value)  # start at 0
passed_over = Counter(
    "flow_run_worker_states_passed_over",
    "States that were not told: their run was deleted or can't be shown, or they are too large, or a bound "
    "queue refused them.",
    ["reason"],
)
for _reason in ("deleted", "unreadable", "too_large", "refused"):
    passed_over.labels(_reason)  # start at 0
states_begun = Counter(
    "flow_run_worker_states_begun",
    "Times at which telling began without a cursor: earlier states are not told.",
)
cursors_set_aside = Counter(
    "flow_run_worker_states_cursors_set_aside",
    "Messages of the cursor's queue that no worker of the fleet wrote, or that can't be read.",
)
_tells_states = Gauge(
    "flow_run_worker_states_teller",
    "1 in the worker that tells states, 0 in those that wait until it leaves. Without states there is none.",
    ["states"],
)
_states_lag = Gauge(
    "flow_run_worker_states_lag_seconds",
    "Seconds since which visible states may wait to be told. 0 in workers that tell none.",
)
states_open = Gauge(
    "flow_run_worker_states_open_transaction_seconds",
    "Age of the oldest transaction that is open for so long that states no longer wait for it. 0 if there is "
    "none.",
)
in_flight = Gauge("flow_run_worker_in_flight", "Deliveries taken and not yet acknowledged.")
in_flight_bytes = Gauge(
    "flow_run_worker_in_flight_bytes", "Size of the deliveries taken and not yet acknowledged."
)
reading_paused = Gauge(
    "flow_run_worker_reading_paused",
    "1 while reading from the broker is paused because too many bytes are held, otherwise 0.",
)
batch_size = Histogram("flow_run_worker_batch_size", "Requests in one transaction.", buckets=_SIZES)
stage_seconds = Histogram(
    "flow_run_worker_stage_seconds", "Time of one batch in a stage.", ["stage"], buckets=_SECONDS
)
_decode, _create, _reply = (stage_seconds.labels(stage) for stage in ("decode", "create", "reply"))

checks_waiting = Gauge(
    "flow_run_worker_checks_waiting",
    "Checks of parameters, job variables and templates that wait for, or run in, the process for costly "
    "checks.",
)
_checks = Histogram("flow_run_worker_check_seconds", "CPU time of one costly check.", buckets=_SECONDS)
_costly = Counter("flow_run_worker_checks_ended", "Checks ended because they took too much time or memory.")

build = Info("flow_run_worker_build", "The running version.")
build.info({"version": __version__})
_settings = Info("flow_run_worker_settings", "The settings that all workers of a queue share.")
dependency_up = Gauge("flow_run_worker_dependency_up", "1 if it answers, 0 if it is down.", ["dependency"])

_OUTCOMES = {201: "created", 200: "existing"}


class _Answer(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def read(self) -> bool: ...


class Readiness:
    """Whether requests are served, or why not."""

    def __init__(self) -> None:
        self.broker: str | None = "not connected yet"
        self.database: str | None = "not connected yet"
        self.deployment: str | None = None
        self.dead_letters: str | None = None
        self.events: str | None = None
        self.states: str | None = None
        self.topology: str | None = None
        self.vanished: dict[str, str] = {}
        self.policies: str | None = None


readiness = Readiness()


def settings(shared: Mapping[str, str]) -> None:
    """Note the settings, for a comparison between workers."""
    _settings.info(dict(shared))


def delivered(deliveries: Sequence[Delivery], seconds: float) -> None:
    """Count received deliveries, and the time to decode them."""
    in_flight.inc(len(deliveries))
    _decode.observe(seconds)
    if again := sum(delivery.redelivered for delivery in deliveries):
        redelivered.inc(again)


def batch(size: int, seconds: float) -> None:
    """Count a stored batch."""
    batch_size.observe(size)
    _create.observe(seconds)


def checked(seconds: float, *, costly: bool) -> None:
    """Count a check of the separate process."""
    _checks.observe(seconds)
    _costly.inc(costly)


def confirmed(seconds: float) -> None:
    """Record the time from publishing replies to their confirms."""
    _reply.observe(seconds)


def settled(answers: Iterable[_Answer]) -> None:
    """Count the answers of acknowledged deliveries."""
    tally = Tally((answer.status, answer.read) for answer in answers)
    for (status, read), count in tally.items():
        _answered(status, read).inc(count)
    in_flight.dec(tally.total())


@cache
def _answered(status: int, read: bool) -> Counter:
    return requests.labels("read" if read else _OUTCOMES.get(status, "refused"), str(status))


def database_away(reason: str) -> None:
    """Note that the database is down, and why."""
    readiness.database = reason
    dependency_up.labels("database").set(0)
    database_retries.inc()


def database_here() -> None:
    """Note that the database answers."""
    readiness.database = None
    dependency_up.labels("database").set(1)


def deployment_missing(reason: str | None) -> None:
    """Note that the deployment of plain messages is missing. None: it is there."""
    readiness.deployment = reason
    dependency_up.labels("deployment").set(reason is None)


def broker_away(reason: str) -> None:
    """Note that there is no session, and why. The deliveries in flight go to another worker."""
    readiness.broker = reason
    readiness.dead_letters = None
    dependency_up.labels("broker").set(0)
    broker_blocked.set(0)
    dead_letters_held.set(0)
    in_flight.set(0)
    in_flight_bytes.set_function(lambda: 0)
    reading_paused.set_function(lambda: 0)


def broker_here(held: Callable[[], int], paused: Callable[[], bool]) -> None:
    """Note that requests are being consumed.

    Args:
        held: returns the bytes of deliveries that are held.
        paused: returns whether reading is paused because of that.
    """
    in_flight_bytes.set_function(held)
    reading_paused.set_function(paused)
    readiness.broker = None
    dependency_up.labels("broker").set(1)


def broker_blocks(reason: str | None) -> None:
    """Note that the broker blocks publishing, and why. None: it accepts messages again."""
    readiness.broker = None if reason is None else f"takes no publications: {reason}"
    broker_blocked.set(reason is not None)


def dead_letters_waiting(count: int) -> None:
    """Note how many dead letters are held because their queue refuses them."""
    readiness.dead_letters = f"{count} are not taken by their queue: is it full?" if count else None
    dead_letters_held.set(count)


def declared_again(what: str) -> None:
    """Note that something vanished from the broker and was declared again."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    readiness.vanished[what] = f"the {what} had vanished and was declared again at {now}"
    _declared_again.labels(what.partition(" ")[0]).inc()


def topology_faulty(reason: str | None) -> None:
    """Note an error in the topology that the worker can't repair. None: there is no error."""
    readiness.topology = reason
    _topology_faulty.set(reason is not None)


def policies(harms: Sequence[str], unseen: str | None = None) -> None:
    """Note the harm that policies do to the queues, or why it can't be read."""
    readiness.policies = "; ".join(harms) or unseen
    _harmful_policies.set(len(harms))


def events(outcome: Literal["delivered", "refused", "left_out", "forged"], count: int = 1) -> None:
    """Count events. Refused ones and those left out reach no server: its API refuses the first,
    and would drop the others or they could not be made. No worker wrote forged ones.
    """
    events_total.labels(outcome).inc(count)


def events_held(reason: str | None) -> None:
    """Note why events wait. None: they don't."""
    readiness.events = reason


def states_told(types: Iterable[str]) -> None:
    """Count published states by their types."""
    for type_, count in Tally(types).items():
        _states_told.labels(type_).inc(count)


def states_passed_over(reason: str, count: int = 1) -> None:
    """Count states that were not published."""
    passed_over.labels(reason).inc(count)


def states_held(reason: str | None) -> None:
    """Note why states wait. None: they don't."""
    readiness.states = reason


def tells_states(states: str, behind: Callable[[], float] | None) -> None:
    """Note that this worker publishes states. None: it waits until another one leaves.

    Args:
        states: which ones, as in the setting.
        behind: returns the seconds since which visible states may wait.
    """
    _tells_states.labels(states).set(behind is not None)
    _states_lag.set_function(behind or (lambda: 0.0))


def states_wait_for_transactions(began: Iterable[datetime]) -> None:
    """Note since when transactions are open for whose end states do not wait any longer."""
    oldest = min(began, default=None)
    states_open.set((datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0)
