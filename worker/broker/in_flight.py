"""Counts the bytes of unacknowledged deliveries. Decides when reading pauses, and which prefetch
fits. RabbitMQ has ``prefetch_size`` in its protocol, but does not implement it. Knows no sockets.
"""

from collections.abc import Callable, Iterable

from worker.tasks.budget import Budget

# Default limit of the bytes held; tests/benchmarks/memory.py measures the worker's size with it.
PREFETCH_SIZE = 64 * 1024 * 1024
# Bytes of a delivery besides its body: its properties, and the objects made of it. A guess.
OVERHEAD = 2048
# The mean size covers about this many of the latest deliveries.
REMEMBERED = 64
# Reading resumes below this share of the limit, so that it does not pause for each delivery.
RESUME_AT = 0.9
# Answers' share of the limit. An answer may be thousands of times as large as its request, with a
# deployment's parameters or an existing run in it.
ANSWERS_SHARE = 1 / 2


class InFlight:
    """Counts the bytes of the deliveries of one session.

    Args:
        max_bytes: reading pauses above this.
        pause: stops reading.
        resume: reads again.

    Attributes:
        bytes: held now.
        paused: true while reading is stopped.
        answers: the bytes of unconfirmed answers.
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
        """Count a delivery whose body has ``size`` bytes."""
        size += OVERHEAD
        self._mean += (size - self._mean) / min(REMEMBERED, len(self._sizes) + 1)
        self._sizes[tag] = size
        self._change(size)

    def answer(self, tag: int, body: int, answer: int) -> None:
        """Count a delivery anew, once its answer is made.

        Args:
            body: bytes of its body that are still held.
            answer: bytes of all messages that answer it.
        """
        size = body + answer + OVERHEAD
        by, self._sizes[tag] = size - self._sizes[tag], size
        self._mean_answer += (size - self._mean_answer) / REMEMBERED
        self.answers.change(answer - self._answers.get(tag, 0))
        self._answers[tag] = answer
        self._change(by)

    def remove(self, tags: Iterable[int]) -> None:
        """Stop counting these deliveries."""
        size = answers = 0
        for tag in tags:
            size += self._sizes.pop(tag)
            answers += self._answers.pop(tag, 0)
        self.answers.change(-answers)
        self._change(-size)

    def fitting(self, most: int) -> int:
        """The number of deliveries of the current mean size, answers included, that fit; from 1 to
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
