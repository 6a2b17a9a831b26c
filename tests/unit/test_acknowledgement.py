"""What the broker is told once deliveries are settled, in whatever order that happens."""

import random

import pytest

from worker.broker.acknowledgement import Acknowledgement, Acknowledgements


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[1, 2, 3]], [Acknowledgement(3, ())]),
        ([[1, 2], [3, 4]], [Acknowledgement(2, ()), Acknowledgement(4, ())]),
        ([[2, 3], [1]], [Acknowledgement(None, (2, 3)), Acknowledgement(1, ())]),
        ([[3], [1, 2], [4]], [Acknowledgement(None, (3,)), Acknowledgement(2, ()), Acknowledgement(4, ())]),
        ([[1, 4], [2, 3]], [Acknowledgement(1, (4,)), Acknowledgement(3, ())]),
        ([[]], [Acknowledgement(None, ())]),
    ],
)
def test_batches_in_order_take_one_frame_and_others_are_acknowledged_singly(
    batches: list[list[int]], expected: list[Acknowledgement]
) -> None:
    acknowledgements = Acknowledgements()
    assert [acknowledgements.settle(batch) for batch in batches] == expected


@pytest.mark.parametrize("seed", range(50))
def test_every_tag_is_acknowledged_exactly_when_it_is_settled(seed: int) -> None:
    """Against the broker's rule: ``multiple`` acknowledges all outstanding tags up to one that must
    be outstanding.
    """
    shuffled = random.Random(seed)
    tags = list(range(1, 200))
    shuffled.shuffle(tags)
    outstanding, settled = set(tags), set()
    acknowledgements = Acknowledgements()
    while tags:
        size = shuffled.randint(1, 30)
        batch, tags = tags[:size], tags[size:]
        settled |= set(batch)
        acknowledgement = acknowledgements.settle(batch)
        acknowledged = set(acknowledgement.single)
        assert acknowledged <= outstanding
        if acknowledgement.up_to is not None:
            assert acknowledgement.up_to in outstanding - acknowledged
            acknowledged |= {tag for tag in outstanding if tag <= acknowledgement.up_to}
        assert acknowledged == set(batch)
        outstanding -= acknowledged
    assert not outstanding
