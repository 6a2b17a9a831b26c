"""The worker's Prometheus metrics and its readiness. They are counted once a batch, so they cost a
request next to nothing.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram, Info

from worker import __version__

# From half a millisecond (a commit on a fast disk) to half a minute (a database that was away).
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

requests = Counter(
    "flow_run_worker_requests", "Requests that were answered and acknowledged.", ["outcome", "status"]
)
redelivered = Counter("flow_run_worker_redelivered", "Deliveries that the broker had delivered before.")
replies_unroutable = Counter(
    "flow_run_worker_replies_unroutable", "Replies whose queue is gone or takes nothing."
)
reconnects = Counter("flow_run_worker_broker_reconnects", "Sessions opened at the broker after the first.")
database_retries = Counter(
    "flow_run_worker_database_retries", "Tries at the database that failed and were repeated."
)
dead_letters_held = Gauge(
    "flow_run_worker_dead_letters_held", "Dead letters that their queue does not take; held until it does."
)
broker_blocked = Gauge(
    "flow_run_worker_broker_blocked",
    "1 while the broker takes no publications because of an alarm, else 0.",
)
_declared_again = Counter(
    "flow_run_worker_topology_declared_again",
    "Queues, exchanges and bindings that had vanished from the broker, and were declared again.",
    ["kind"],
)
for _kind in ("queue", "exchange", "binding"):
    _declared_again.labels(_kind)  # so that the first one is an increase
_topology_faulty = Gauge(
    "flow_run_worker_topology_faulty",
    "1 while a queue, the exchange or the binding is missing or wrong and can't be declared, or can't be "
    "looked at; else 0.",
)
_harmful_policies = Gauge(
    "flow_run_worker_harmful_policies",
    "Settings of policies that drop, expire or limit what is in the worker's queues; 0 where none was found, "
    "or nobody can look.",
)
events_total = Counter("flow_run_worker_events", "Events of new runs, by what became of them.", ["outcome"])
_delivered, _refused, _left_out, _forged = (
    events_total.labels(outcome) for outcome in ("delivered", "refused", "left_out", "forged")
)
outbox_age = Gauge(
    "flow_run_worker_events_outbox_age_seconds",
    "Age of the oldest event that waits for Prefect's API; 0 where none does, and in workers that hand none "
    "over.",
)
outbox_messages = Gauge(
    "flow_run_worker_events_outbox_messages",
    "Messages in the outbox, each with 1 to 200 events; 0 in workers that hand none over.",
)
in_flight = Gauge("flow_run_worker_in_flight", "Deliveries taken and not yet acknowledged.")
in_flight_bytes = Gauge(
    "flow_run_worker_in_flight_bytes", "Size of the deliveries taken and not yet acknowledged."
)
reading_paused = Gauge(
    "flow_run_worker_reading_paused",
    "1 while nothing more is read from the broker because too many bytes are held, else 0.",
)
batch_size = Histogram("flow_run_worker_batch_size", "Requests in one transaction.", buckets=_SIZES)
stage_seconds = Histogram(
    "flow_run_worker_stage_seconds", "Time of one batch in a stage.", ["stage"], buckets=_SECONDS
)
_decode, _create, _reply = (stage_seconds.labels(stage) for stage in ("decode", "create", "reply"))

checks_waiting = Gauge(
    "flow_run_worker_checks_waiting",
    "Checks of parameters, job variables and templates that wait for the process that makes costly ones, or "
    "are under way there.",
)
_checks = Histogram(
    "flow_run_worker_check_seconds", "CPU time of one check in that process.", buckets=_SECONDS
)
_costly = Counter(
    "flow_run_worker_checks_ended", "Checks that were ended, as they took too much time or memory."
)

build = Info("flow_run_worker_build", "The version that runs.")
build.info({"version": __version__})
dependency_up = Gauge("flow_run_worker_dependency_up", "1 if it answers, 0 if it is away.", ["dependency"])

_OUTCOMES = {201: "created", 200: "existing"}


class _Delivery(Protocol):
    @property
    def redelivered(self) -> bool: ...


class _Answer(Protocol):
    @property
    def status(self) -> int: ...


class Readiness:
    """Whether requests are being served, and if not, why."""

    def __init__(self) -> None:
        self.broker: str | None = "not connected yet"
        self.database: str | None = "not connected yet"
        self.dead_letters: str | None = None
        self.events: str | None = None
        self.topology: str | None = None
        self.vanished: dict[str, str] = {}
        self.policies: str | None = None


readiness = Readiness()


def delivered(deliveries: Sequence[_Delivery], seconds: float) -> None:
    """Count deliveries that were taken, and the time to decode them."""
    in_flight.inc(len(deliveries))
    _decode.observe(seconds)
    if again := sum(delivery.redelivered for delivery in deliveries):
        redelivered.inc(again)


def batch(size: int, seconds: float) -> None:
    """Count a batch that was stored."""
    batch_size.observe(size)
    _create.observe(seconds)


def checked(seconds: float, *, costly: bool) -> None:
    """Count a check that was made in the process of its own."""
    _checks.observe(seconds)
    _costly.inc(costly)


def confirmed(seconds: float) -> None:
    """Count the time from publishing replies to their confirm."""
    _reply.observe(seconds)


def settled(answers: Iterable[_Answer]) -> None:
    """Count answers whose deliveries are acknowledged."""
    tally = Tally(answer.status for answer in answers)
    for status, count in tally.items():
        _answered(status).inc(count)
    in_flight.dec(tally.total())


@cache
def _answered(status: int) -> Counter:
    return requests.labels(_OUTCOMES.get(status, "refused"), str(status))


def database_away(reason: str) -> None:
    """Note that the database is away, and why."""
    readiness.database = reason
    dependency_up.labels("database").set(0)
    database_retries.inc()


def database_here() -> None:
    """Note that the database answers."""
    readiness.database = None
    dependency_up.labels("database").set(1)


def broker_away(reason: str) -> None:
    """Note that there is no session, and why. What was in flight goes to another worker."""
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
        held: tells how many bytes of deliveries are held.
        paused: tells whether reading has stopped because of that.
    """
    in_flight_bytes.set_function(held)
    reading_paused.set_function(paused)
    readiness.broker = None
    dependency_up.labels("broker").set(1)


def broker_blocks(reason: str | None) -> None:
    """Note that the broker takes no publications, and why, or takes them again (None)."""
    readiness.broker = None if reason is None else f"takes no publications: {reason}"
    broker_blocked.set(reason is not None)


def dead_letters_waiting(count: int) -> None:
    """Note how many dead letters their queue does not take."""
    readiness.dead_letters = f"{count} are not taken by their queue: is it full?" if count else None
    dead_letters_held.set(count)


def declared_again(what: str) -> None:
    """Note that something had vanished from the broker, and was declared again."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    readiness.vanished[what] = f"the {what} had vanished and was declared again at {now}"
    _declared_again.labels(what.partition(" ")[0]).inc()


def topology_faulty(reason: str | None) -> None:
    """Note what is wrong with the topology and can't be mended, or that nothing is (None)."""
    readiness.topology = reason
    _topology_faulty.set(reason is not None)


def policies(harms: Sequence[str], unseen: str | None = None) -> None:
    """Note what policies do to the queues, or why nobody can see it."""
    readiness.policies = "; ".join(harms) or unseen
    _harmful_policies.set(len(harms))


def events_delivered(count: int) -> None:
    """Count events that Prefect's API took."""
    _delivered.inc(count)


def event_refused() -> None:
    """Count an event that Prefect's API refused."""
    _refused.inc()


def event_forged() -> None:
    """Count a message of the outbox that no worker has written."""
    _forged.inc()


def events_left_out(count: int) -> None:
    """Count events that never came to be, or that the API would drop."""
    _left_out.inc(count)


def events_held(reason: str | None) -> None:
    """Note why events wait, or that they don't (None)."""
    readiness.events = reason
