"""What was delivered and is not acknowledged yet, in bytes: when to stop reading, and how many
deliveries to be let in at a time. RabbitMQ has ``prefetch_size`` in its protocol and does not do
it; knows no sockets.
"""

from collections.abc import Callable, Iterable

from worker.tasks.budget import Budget

# Bytes of deliveries that are held at the most, unless it is said otherwise; the worker's size is
# in tests/benchmarks/memory.py.
PREFETCH_SIZE = 64 * 1024 * 1024
# What a delivery takes besides its body: its properties, and the objects made of it. A guess.
OVERHEAD = 2048
# The mean size follows the sizes of the last so many deliveries.
REMEMBERED = 64
# Reading goes on once so much of the limit is free, so that it does not stop and go for each
# delivery.
RESUME_AT = 0.9
# What answers may take, as a share of the limit: an answer may be thousands of times as large as
# its request, with a deployment's parameters in it or a run that exists.
ANSWERS_SHARE = 1 / 2


class InFlight:
    """Counts the bytes of the deliveries of one session.

    Args:
        max_bytes: with more than that, nothing more is read.
        pause: stops reading.
        resume: reads again.

    Attributes:
        bytes: how many are held.
        paused: whether reading has stopped.
        answers: the bytes of answers that are not confirmed.
    """

    def __init__(self, max_bytes: int, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.bytes = 0
        self.paused = False
        self._max_bytes = max_bytes
        self._pause = pause
        self._resume = resume
        self._sizes: dict[int, int] = {}
        self.answers = Budget(int(max_bytes * ANSWERS_SHARE))
        self._answers: dict[int, int] = {}
        self._mean = 0.0
        self._mean_answer = 0.0

    def add(self, tag: int, size: int) -> None:
        """Count a delivery with a body of so many bytes."""
        size += OVERHEAD
        self._mean += (size - self._mean) / min(REMEMBERED, len(self._sizes) + 1)
        self._sizes[tag] = size
        self._change(size)

    def answer(self, tag: int, body: int, answer: int) -> None:
        """Count a delivery anew: so many bytes of its body are still held, and so many of its
        answer, which more than one message may make up.
        """
        size = body + answer + OVERHEAD
        by, self._sizes[tag] = size - self._sizes[tag], size
        self._mean_answer += (size - self._mean_answer) / REMEMBERED
        self.answers.change(answer - self._answers.get(tag, 0))
        self._answers[tag] = answer
        self._change(by)

    def remove(self, tags: Iterable[int]) -> None:
        """Count these deliveries no more."""
        size = answers = 0
        for tag in tags:
            size += self._sizes.pop(tag)
            answers += self._answers.pop(tag, 0)
        self.answers.change(-answers)
        self._change(-size)

    def fitting(self, most: int) -> int:
        """How many deliveries of the sizes that come now fit, with their answers, from 1 to
        ``most``.
        """
        return max(1, min(most, int(self._max_bytes / max(self._mean, self._mean_answer, 1.0))))

    def _change(self, by: int) -> None:
        self.bytes += by
        if self.bytes > self._max_bytes and not self.paused:
            self.paused = True
            self._pause()
        elif self.paused and self.bytes < RESUME_AT * self._max_bytes:
            self.paused = False
            self._resume()
