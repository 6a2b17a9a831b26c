"""A limit on the CPU time of one piece of work that awaits nothing. It ends a match of a regular
expression as well, which else nothing but the end of the process does.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")

# An exception may be swallowed where it is raised, such as in a finalizer: it comes again after so
# many seconds.
AGAIN_SECONDS = 0.1

_working = False


class TimeIsUp(Exception):
    """The work took longer than it may."""


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Do work, which is interrupted after so much CPU time of this process.

    Only the main thread can be interrupted; in another there is no limit.

    Raises:
        TimeIsUp: in the midst of the work.
    """
    global _working
    if threading.current_thread() is not threading.main_thread():
        return work()
    signal.signal(signal.SIGVTALRM, _interrupt)
    # Twice: the first end may be interrupted itself.
    try:
        try:
            _working = True
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds, AGAIN_SECONDS)
            return work()
        finally:
            _working = False
    finally:
        _working = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _interrupt(_: int, __: FrameType | None) -> None:
    if _working:
        raise TimeIsUp
