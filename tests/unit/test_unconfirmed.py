"""Who is told what the broker says of each publication."""

from worker.amqp.publication import Confirm, Outgoing, Publication, Unconfirmed

ACK, NACK, RETURN = Confirm.ACK, Confirm.NACK, Confirm.RETURN


class Sent:
    """Publications to these queues, numbered from 1, and what was told of them in its order."""

    def __init__(self, *queues: str) -> None:
        self.told: list[tuple[int, Confirm]] = []
        self.unconfirmed = Unconfirmed()
        self.count = 0
        for queue in queues:
            self.add(queue)

    def add(self, queue: str) -> None:
        self.count += 1
        number = self.count
        publication = Publication(queue, b"\0\0", b"")
        self.unconfirmed.add(
            number, Outgoing(publication, lambda confirm: self.told.append((number, confirm)))
        )


def test_each_is_told_its_own_confirm_in_whatever_order_they_come() -> None:
    sent = Sent("a", "b", "c")
    sent.unconfirmed.confirm(3, NACK)
    sent.unconfirmed.confirm(1, ACK)
    sent.unconfirmed.confirm(2, ACK)
    assert sent.told == [(3, NACK), (1, ACK), (2, ACK)]


def test_one_confirm_of_many_is_told_to_all_that_have_none() -> None:
    sent = Sent(*"abcdef")
    sent.unconfirmed.confirm(2, NACK)
    sent.unconfirmed.confirm(4, ACK, multiple=True)
    assert sent.told == [(2, NACK), (1, ACK), (3, ACK), (4, ACK)]
    sent.unconfirmed.confirm(6, NACK, multiple=True)
    assert sent.told[4:] == [(5, NACK), (6, NACK)]


def test_the_brokers_first_word_counts() -> None:
    """What came back is acknowledged all the same, behind its return."""
    sent = Sent("gone")
    sent.unconfirmed.returned("gone")
    sent.unconfirmed.confirm(1, ACK)
    assert sent.told == [(1, RETURN)]


def test_a_return_counts_for_all_to_that_queue_of_which_nothing_was_said() -> None:
    sent = Sent("gone", "there", "gone", "gone")
    sent.unconfirmed.confirm(1, ACK)
    sent.unconfirmed.returned("gone")
    sent.unconfirmed.returned("elsewhere")
    assert sent.told == [(1, ACK), (3, RETURN), (4, RETURN)]
    sent.unconfirmed.returned("gone")
    sent.unconfirmed.confirm(2, ACK)
    assert sent.told[3:] == [(2, ACK)]


def test_what_goes_out_after_a_return_comes_back_as_well() -> None:
    sent = Sent("gone", "there")
    sent.unconfirmed.returned("gone")
    sent.add("gone")
    sent.add("there")
    sent.unconfirmed.confirm(4, ACK)
    sent.unconfirmed.returned("there")
    sent.unconfirmed.returned("gone")
    assert sent.told == [(1, RETURN), (4, ACK), (2, RETURN), (3, RETURN)]


def test_a_queue_that_is_confirmed_for_long_leaves_nothing_behind() -> None:
    """Once anything came back, numbers are kept by queue for as long as any is unconfirmed."""
    sent = Sent("hangs", "gone")
    sent.unconfirmed.returned("gone")
    for _ in range(1000):
        sent.add("there")
        sent.unconfirmed.confirm(sent.count, ACK)
    assert sum(map(len, sent.unconfirmed._by_queue.values())) == 1
    sent.unconfirmed.confirm(sent.count, ACK, multiple=True)
    assert not sent.unconfirmed._by_queue
