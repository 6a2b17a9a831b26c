"""Which deliveries wait off the line, for which queues, and when others come in their place."""

from worker.line.set_aside import SetAside


def test_a_delivery_waits_for_each_of_its_queues_until_the_queue_takes_it() -> None:
    aside = SetAside()
    aside.add(1, "replies")
    aside.add(1, "replies")
    aside.add(1, "dead")
    aside.add(2, "dead")
    assert (len(aside), aside.waiting_for("replies"), aside.waiting_for("dead")) == (2, 1, 2)
    aside.leave(1, "replies")
    aside.leave(1, "replies")
    assert (len(aside), aside.waiting_for("replies"), aside.waiting_for("dead")) == (2, 0, 2)
    assert aside.waits(1, "dead")
    assert not aside.waits(1, "replies")


def test_one_that_waits_for_nothing_more_is_set_aside_until_it_is_settled() -> None:
    """It still takes up prefetch."""
    aside = SetAside()
    aside.add(1, "dead")
    aside.leave(1, "dead")
    assert len(aside) == 1
    aside.remove([1, 2])
    assert not aside


def test_others_come_in_place_of_half_of_the_prefetch_and_once_for_each() -> None:
    aside = SetAside()
    for tag in range(4):
        aside.add(tag, "dead")
    assert not aside.take_up_prefetch(10)
    aside.add(4, "dead")
    assert aside.take_up_prefetch(10)
    assert not aside.take_up_prefetch(10)
    aside.remove(range(5))
    assert not aside.take_up_prefetch(0)
    for tag in range(5):
        aside.add(tag, "dead")
    assert aside.take_up_prefetch(10)
