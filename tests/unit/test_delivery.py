"""The facts of a delivery: those of the broker, and those of a producer or a hop."""

import pytest

from worker.contract.delivery import Delivery
from worker.contract.message import Message


@pytest.mark.parametrize("count", [1, 7, 10**9, -1, "many", None, True, [3], 2.5])
def test_a_count_on_a_first_delivery_is_not_believed(count: object) -> None:
    """A shovel, the management UI or a producer may leave one there."""
    assert Delivery(1, Message(b"", {"x-delivery-count": count})).delivery_count == 0


@pytest.mark.parametrize(("count", "believed"), [(3, 3), ("many", 0), (None, 0)])
def test_a_count_on_a_redelivery_is_the_queues(count: object, believed: int) -> None:
    message = Message(b"", {"x-delivery-count": count}, redelivered=True)
    assert Delivery(1, message).delivery_count == believed
