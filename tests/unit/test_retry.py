"""When a reply is given up: the rule alone."""

from typing import Any

import pytest

from worker.amqp.publication import Confirm
from worker.line.patience import Patience
from worker.line.retry import Retry

PATIENCE = Patience(reply=25.0, lone_reply=600.0, given_up=60.0)


def reason(rule: Retry, confirm: Confirm | None, queue: str = "replies", **facts: Any) -> str | None:
    """The reason for a reply with these facts. By default it is new, and waits alone."""
    defaults = {"now": 0.0, "since": 0.0, "later": False, "others": 0, "prefetch": 1000}
    return rule.reason_to_give_up(queue, confirm, **{**defaults, **facts})


@pytest.mark.parametrize(
    ("confirm", "facts", "expected"),
    [
        (Confirm.RETURN, {}, "no such queue"),
        (Confirm.NACK, {}, None),
        (Confirm.NACK, {"now": 24.9}, None),
        (Confirm.NACK, {"now": 25.1}, "the broker does not take it"),
        # At most a tenth of the prefetch may wait.
        (Confirm.NACK, {"others": 99}, None),
        (Confirm.NACK, {"others": 100}, "the broker does not take it"),
        (Confirm.NACK, {"others": 9, "prefetch": 100}, None),
        (Confirm.NACK, {"others": 10, "prefetch": 100}, "the broker does not take it"),
        (None, {}, None),
        # A broker that confirms nothing is slow; one that confirms later replies has lost this one.
        (None, {"now": 25.1}, None),
        (None, {"now": 24.9, "later": True}, None),
        (None, {"now": 25.1, "later": True}, "the broker does not confirm it"),
        (None, {"now": 599.0}, None),
        (None, {"now": 601.0}, "the broker does not confirm it"),
    ],
)
def test_a_reply_is_given_up_for_a_reason(
    confirm: Confirm | None, facts: dict[str, Any], expected: str | None
) -> None:
    assert reason(Retry(PATIENCE), confirm, **facts) == expected


def test_the_next_replies_to_a_queue_that_was_given_up_are_tried_once_for_a_while() -> None:
    rule = Retry(PATIENCE)
    assert reason(rule, Confirm.NACK, now=1000.0, since=974.0)
    new = {"now": 1001.0, "since": 1000.0}
    assert reason(rule, Confirm.NACK, **new)
    assert reason(rule, Confirm.NACK, queue="another", **new) is None
    assert reason(rule, None, **new) is None
    assert reason(rule, Confirm.NACK, now=1061.0, since=1060.0) is None
