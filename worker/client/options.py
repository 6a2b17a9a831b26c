"""The options of a call."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

Headers = Mapping[str, Any] | None
Expires = float | Literal["timeout"] | None
# False: don't wait for the end of the run. True: wait without limit. A number: the most seconds to
# wait.
Wait = bool | float


class Options(TypedDict, total=False):
    """The options of every call.

    Attributes:
        headers: AMQP headers, such as ``traceparent``.
        timeout: seconds for this call, in place of the client's.
        expires: seconds after which the broker drops the request from the queue, if no worker has
            taken it, into the dead-letter queue; or ``"timeout"``, the seconds of the timeout. By
            default it waits there without limit, also after the timeout.
        check: whether to check the request before it is sent, as the worker does (default: True).
    """

    headers: Headers
    timeout: float | None
    expires: Expires
    check: bool


def check_timeout(timeout: float) -> float:
    """A timeout in seconds.

    Raises:
        TypeError, ValueError: it is no positive number.
    """
    return _positive("timeout", timeout)


def check_wait(wait: Wait) -> float | None:
    """The seconds of ``wait``; None for no limit, or no wait.

    Raises:
        TypeError, ValueError: it is neither a boolean nor a positive number.
    """
    return None if isinstance(wait, bool) else _positive("wait", wait)


def expiration(expires: Expires, timeout: float) -> float | None:
    """The seconds of ``expires``.

    Raises:
        TypeError, ValueError: it is neither ``"timeout"`` nor a positive number.
    """
    if expires is None:
        return None
    return timeout if expires == "timeout" else _positive("expires", expires)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}, and has to be a number of seconds")
    if not value > 0:
        raise ValueError(f"{name} is {value!r}, and has to be above 0")
    return value
