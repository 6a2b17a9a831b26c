"""The topology at the broker, all named after one queue."""

import pytest

from worker.broker.topology import Topology
from worker.contract.topology import Binding, QueueNames


@pytest.mark.parametrize(
    ("queue", "exchange", "routing_key"),
    [
        ("flow-runs.create", "flow-runs", "create"),
        ("a.b.c", "a.b", "c"),
        ("plain", None, None),
        (".create", None, None),
        ("create.", None, None),
    ],
)
def test_everything_is_named_after_the_queue(
    queue: str, exchange: str | None, routing_key: str | None
) -> None:
    topology = Topology(queue)
    assert topology.queue == queue
    assert topology.dead_letter_queue == f"{queue}.dead"
    assert (topology.exchange, topology.routing_key) == (exchange, routing_key)


def test_the_arguments_are_those_of_the_contract() -> None:
    """Other programs declare the same, and the broker refuses different arguments."""
    topology = Topology("q.create")
    assert topology.queues["q.create"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "q.create.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert topology.queues["q.create.dead"] == {"x-queue-type": "quorum"}


def test_the_outbox_stands_only_where_there_are_events() -> None:
    assert set(Topology("q.create").queues) == {"q.create", "q.create.dead"}
    topology = Topology("q.create", events=True)
    assert topology.queues["q.create.events"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2**31 - 1,
        "x-single-active-consumer": True,
        "x-overflow": "reject-publish",
    }


def test_states_have_an_exchange_and_a_queue_for_their_cursor() -> None:
    assert Topology("q.create").exchanges == {"q": "direct"}
    topology = Topology("q.create", states=True)
    assert topology.exchanges == {"q": "direct", "q.create.states": "topic"}
    assert topology.queues["q.create.states.cursor"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2**31 - 1,
        "x-single-active-consumer": True,
        "x-overflow": "reject-publish",
    }


def test_a_topology_has_all_that_its_names_have() -> None:
    names = QueueNames("q", events=True, states=True, bindings=(Binding("others", "key"),))
    assert Topology.of(names).queues == names.queues
    assert Topology.of(names).exchanges == names.exchanges
    assert Topology.of(names).bindings == names.bindings
