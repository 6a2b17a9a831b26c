"""When a reply is given up: the rule alone."""

from typing import Any

import pytest

from worker.amqp.publication import Confirm
from worker.line import giving_up
from worker.line.giving_up import GivingUp


def reason(rule: GivingUp, confirm: Confirm | None, queue: str = "replies", **facts: Any) -> str | None:
    """The reason for a reply with these facts. By default it is new, and waits alone."""
    return rule.reason(
        queue, confirm, **{"waited": 0.0, "later": False, "others": 0, "prefetch": 1000, **facts}
    )


@pytest.mark.parametrize(
    ("confirm", "facts", "expected"),
    [
        (Confirm.RETURN, {}, "no such queue"),
        (Confirm.NACK, {}, None),
        (Confirm.NACK, {"waited": 24.9}, None),
        (Confirm.NACK, {"waited": 25.1}, "the broker does not take it"),
        # At most a tenth of the prefetch may wait.
        (Confirm.NACK, {"others": 99}, None),
        (Confirm.NACK, {"others": 100}, "the broker does not take it"),
        (Confirm.NACK, {"others": 9, "prefetch": 100}, None),
        (Confirm.NACK, {"others": 10, "prefetch": 100}, "the broker does not take it"),
        (None, {}, None),
        # A broker that confirms nothing is slow; one that confirms later replies has lost this one.
        (None, {"waited": 25.1}, None),
        (None, {"waited": 24.9, "later": True}, None),
        (None, {"waited": 25.1, "later": True}, "the broker does not confirm it"),
        (None, {"waited": 599.0}, None),
        (None, {"waited": 601.0}, "the broker does not confirm it"),
    ],
)
def test_a_reply_is_given_up_for_a_reason(
    confirm: Confirm | None, facts: dict[str, Any], expected: str | None
) -> None:
    assert reason(GivingUp(), confirm, **facts) == expected


def test_the_next_replies_to_a_queue_that_was_given_up_are_tried_once_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(giving_up, "monotonic", lambda: now)
    rule = GivingUp()
    assert reason(rule, Confirm.NACK, waited=26.0)
    assert reason(rule, Confirm.NACK)
    assert reason(rule, Confirm.NACK, queue="another") is None
    assert reason(rule, None) is None
    now += 61.0
    assert reason(rule, Confirm.NACK) is None
