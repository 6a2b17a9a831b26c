"""How many bytes of deliveries are held, and when reading stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.in_flight import OVERHEAD, RESUME_AT, InFlight

LIMIT = 1_000_000


class Reading:
    """Whether the socket is read, as set by the last call."""

    def __init__(self) -> None:
        self.changes: list[str] = []

    def pause(self) -> None:
        self.changes.append("pause")

    def resume(self) -> None:
        self.changes.append("resume")


def held_by(reading: Reading) -> InFlight:
    return InFlight(LIMIT, reading.pause, reading.resume)


def test_reading_stops_over_the_limit_and_goes_on_once_there_is_room() -> None:
    reading = Reading()
    held = held_by(reading)
    size = LIMIT // 4
    for tag in range(1, 5):
        held.add(tag, size)
    assert reading.changes == ["pause"]
    assert held.paused
    held.add(5, size)  # came with the same read of the socket
    held.remove([1])
    assert reading.changes == ["pause"]
    held.remove([2, 3])
    assert reading.changes == ["pause", "resume"]
    assert not held.paused
    held.remove([4, 5])
    assert held.bytes == 0
    assert reading.changes == ["pause", "resume"]


def test_what_is_larger_than_the_limit_comes_in_alone() -> None:
    reading = Reading()
    held = held_by(reading)
    held.add(1, 2 * LIMIT)
    assert reading.changes == ["pause"]
    assert held.fitting(100) == 1
    held.remove([1])
    assert reading.changes == ["pause", "resume"]


def test_an_answer_counts_in_the_place_of_its_body() -> None:
    reading = Reading()
    held = held_by(reading)
    held.add(1, 10)
    held.answer(1, 0, LIMIT)
    assert (held.bytes, reading.changes) == (LIMIT + OVERHEAD, ["pause"])
    held.answer(1, 0, 10)
    assert (held.bytes, reading.changes) == (10 + OVERHEAD, ["pause", "resume"])


@pytest.mark.parametrize(("size", "fitting"), [(0, 100), (20_000, 45), (200_000, 4), (2_000_000, 1)])
def test_as_many_are_let_in_as_fit_of_the_sizes_that_come(size: int, fitting: int) -> None:
    held = held_by(Reading())
    assert held.fitting(100) == 100
    for tag in range(1, 501):
        held.add(tag, size)
        held.remove([tag])
    assert held.fitting(100) == fitting


@given(st.lists(st.tuples(st.integers(0, LIMIT), st.booleans()), max_size=60))
def test_however_sizes_come_and_go_no_byte_is_forgotten(steps: list[tuple[int, bool]]) -> None:
    reading = Reading()
    held = held_by(reading)
    left: dict[int, int] = {}
    for tag, (size, goes) in enumerate(steps, start=1):
        held.add(tag, size)
        left[tag] = size + OVERHEAD
        if goes:
            oldest = next(iter(left))
            held.remove([oldest])
            del left[oldest]
        assert held.bytes == sum(left.values())
        assert held.paused == (reading.changes[-1:] == ["pause"])
        assert held.paused or held.bytes <= LIMIT
        assert not held.paused or held.bytes >= RESUME_AT * LIMIT
    held.remove(list(left))
    assert held.bytes == 0
    assert not held.paused


def test_answers_leave_room_as_they_are_confirmed() -> None:
    held = held_by(Reading())
    held.add(1, 10)
    held.add(2, 10)
    held.answer(1, 10, LIMIT)
    assert not held.answers.fits(1)
    held.answer(2, 10, 100)
    held.remove([1])
    assert held.answers.held == 100
    held.remove([2])
    assert held.answers.fits(LIMIT)


def test_fewer_are_let_in_where_answers_are_larger_than_requests() -> None:
    held = held_by(Reading())
    for tag in range(1000):
        held.add(tag, 100)
        held.answer(tag, 100, 200_000)
        held.remove([tag])
    assert held.fitting(100) == 4
