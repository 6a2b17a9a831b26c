"""When a reply is given up: the rule alone."""

from typing import Any

import pytest

from worker.broker.publisher import Fate
from worker.line import giving_up
from worker.line.giving_up import GivingUp


def reason(rule: GivingUp, fate: Fate | None, queue: str = "replies", **facts: Any) -> str | None:
    """The reason for a reply with these facts. By default it is new, and waits alone."""
    return rule.reason(
        queue, fate, **{"waited": 0.0, "overtaken": False, "others": 0, "prefetch": 1000, **facts}
    )


@pytest.mark.parametrize(
    ("fate", "facts", "expected"),
    [
        (Fate.RETURNED, {}, "no such queue"),
        (Fate.REFUSED, {}, None),
        (Fate.REFUSED, {"waited": 24.9}, None),
        (Fate.REFUSED, {"waited": 25.1}, "the broker does not take it"),
        # At most a tenth of the prefetch may wait.
        (Fate.REFUSED, {"others": 99}, None),
        (Fate.REFUSED, {"others": 100}, "the broker does not take it"),
        (Fate.REFUSED, {"others": 9, "prefetch": 100}, None),
        (Fate.REFUSED, {"others": 10, "prefetch": 100}, "the broker does not take it"),
        (None, {}, None),
        # A broker that confirms nothing is slow; one that confirms later replies has lost this one.
        (None, {"waited": 25.1}, None),
        (None, {"waited": 24.9, "overtaken": True}, None),
        (None, {"waited": 25.1, "overtaken": True}, "the broker does not confirm it"),
        (None, {"waited": 599.0}, None),
        (None, {"waited": 601.0}, "the broker does not confirm it"),
    ],
)
def test_a_reply_is_given_up_for_a_reason(
    fate: Fate | None, facts: dict[str, Any], expected: str | None
) -> None:
    assert reason(GivingUp(), fate, **facts) == expected


def test_the_next_replies_to_a_queue_that_was_given_up_are_tried_once_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(giving_up, "monotonic", lambda: now)
    rule = GivingUp()
    assert reason(rule, Fate.REFUSED, waited=26.0)
    assert reason(rule, Fate.REFUSED)
    assert reason(rule, Fate.REFUSED, queue="another") is None
    assert reason(rule, None) is None
    now += 61.0
    assert reason(rule, Fate.REFUSED) is None
