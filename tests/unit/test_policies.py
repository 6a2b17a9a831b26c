"""The effects of policies on the worker's queues, as the management API shows them."""

import re
from typing import Any

import pytest

from worker.broker.policies import command, harms, pattern
from worker.broker.topology import Topology

TOPOLOGY = Topology("flow-runs.create", events=True)
REQUESTS, DEAD, EVENTS = TOPOLOGY.queues


def told(queue: str, definition: dict[str, Any], **seen: Any) -> list[tuple[bool, str]]:
    shown = {"policy": "all", "operator_policy": None, "effective_policy_definition": definition, **seen}
    return [(harm.loses, harm.text) for harm in harms(TOPOLOGY, "/", queue, shown)]


@pytest.mark.parametrize(
    ("queue", "definition", "loses", "text"),
    [
        (REQUESTS, {"expires": 60000}, True, "deletes the queue and its messages"),
        (DEAD, {"expires": 60000}, True, "60,000 ms"),
        (REQUESTS, {"message-ttl": 5}, True, "moves requests to flow-runs.create.dead"),
        (DEAD, {"message-ttl": 5}, True, "drops letters"),
        (EVENTS, {"message-ttl": 5}, True, "drops messages"),
        (REQUESTS, {"max-length": 5}, False, "takes no requests beyond 5"),
        (REQUESTS, {"max-length-bytes": 5, "overflow": "drop-head"}, True, "drops the oldest requests"),
        (REQUESTS, {"overflow": "drop-head"}, True, "may lose"),
        (DEAD, {"max-length": 5}, True, "drops the oldest letters"),
        (DEAD, {"max-length": 5, "overflow": "reject-publish"}, False, "takes no letters"),
        (REQUESTS, {"delivery-limit": 3}, False, "gives up requests that were delivered 3 times"),
        (DEAD, {"delivery-limit": 20}, True, "drops letters that were looked at 20 times"),
        (EVENTS, {"delivery-limit": 20}, True, "drops messages that were delivered 20 times"),
    ],
)
def test_what_drops_expires_or_limits_is_told(
    queue: str, definition: dict[str, Any], loses: bool, text: str
) -> None:
    found = told(queue, definition)
    assert any(each == loses and text in said and "policy 'all'" in said for each, said in found), found


@pytest.mark.parametrize("queue", [REQUESTS, DEAD, EVENTS])
def test_what_does_no_harm_is_not_told(queue: str) -> None:
    assert told(queue, {"delivery-limit": 2**31 - 1, "queue-leader-locator": "balanced"}) == []
    assert told(queue, {}) == []


def test_the_limit_that_rabbitmq_4_has_by_itself_is_told() -> None:
    ((loses, text),) = told(DEAD, {}, policy=None, delivery_limit=20)
    assert loses
    assert text.startswith("RabbitMQ itself drops letters")
    assert told(REQUESTS, {}, policy=None, delivery_limit=20) == []
    assert told(EVENTS, {}, policy=None, delivery_limit=2**31 - 1) == []
    assert told(DEAD, {}, policy=None, delivery_limit="unlimited") == []


def test_only_who_runs_the_broker_can_change_an_operator_policy() -> None:
    seen = {"policy": None, "operator_policy": "plan", "effective_policy_definition": {"expires": 1}}
    (harm,) = harms(TOPOLOGY, "/", DEAD, seen)
    assert harm.text.startswith("the operator policy 'plan' deletes")
    assert "operator policy 'plan'" in harm.remedy


def test_the_policy_of_our_own_is_for_our_queues_alone() -> None:
    for name in (*TOPOLOGY.queues, "flow-runs.create.states.cursor"):
        assert re.search(pattern(TOPOLOGY), name)
    for name in ("flow-runsXcreate", "flow-runs.create2", "x.flow-runs.create", "flow-runs.create.replies"):
        assert not re.search(pattern(TOPOLOGY), name)
    assert "--vhost 'a b'" in command(TOPOLOGY, "a b")
