"""Connects to RabbitMQ, and explains failures. Worker, client and commands all connect here. It
serves nothing and declares nothing.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AMQPError,
    AuthenticationError,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused, ChannelClosed, ConnectionClosed, InvalidFrameError
from yarl import URL

from ..amqp.watch import Watch, WatchedConnection, watch_of
from ..urls.broker import split_urls, with_password
from ..urls.password_file import PASSWORD_FILE, PasswordUnreadable

ConnectionType = TypeVar("ConnectionType", bound=aio_pika.Connection)
T = TypeVar("T")

# A connection attempt that hangs (a silent firewall) counts as failed after this many seconds.
CONNECT_TIMEOUT = 10.0
# Seconds between the tries of two addresses of one host.
HAPPY_EYEBALLS_DELAY = 1.0
# Seconds for the broker to answer a close. A dead one never does.
CLOSE_TIMEOUT = 5.0
# The same for a broker that blocks publishers: it reads nothing from this connection. 0.5 seconds
# are enough for earlier writes to reach the socket.
BLOCKED_CLOSE_TIMEOUT = 0.5

# The reason of a close by an operator, or as the broker stops: it is no error.
FORCED = "CONNECTION_FORCED"
# The reason that we give if the broker gave none.
GONE = "the connection to the broker ended without a reason (the broker or the network may have failed)"
# In the broker's reason if the user or the virtual host has its maximum of connections. Such a
# refusal passes when other connections end.
_LIMIT = re.compile(r"\blimit\b")

# OpenSSL's errors that only another certificate, key or port will mend. Its other errors come from
# broken connections.
_CERTIFICATE_WRONG = re.compile(
    r"\[[A-Z0-9]+: \w*(?:CERT|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED|WRONG_VERSION"
    r"|PROTOCOL_VERSION|MISMATCH|PEM|KEY)\w*\] (.+?)\.?(?: \(_ssl|$)"
)
# In TLS 1.3 a client writes before the server has judged its certificate. A reset can outrun that
# answer.
_PERHAPS_CERTIFICATE = (
    "; perhaps it wants another client certificate, or one at all (cafile, certfile and keyfile)"
)


class BrokerUnavailable(ConnectionError):
    """The broker cannot be reached now; it may be reached later."""


class DeliveryFailed(BrokerUnavailable):
    """The broker accepted the connection, but closed it with an error as soon as we consumed."""


class BrokerRefused(Exception):
    """The broker refuses login, virtual host or permission. The message says which."""


class TLSRefused(BrokerRefused):
    """The broker's certificate or ours is not trusted, or a certificate's file can't be read."""


class PublishersBlocked(BrokerUnavailable):
    """The broker takes no publications because of an alarm. The message has its reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The broker takes no publications: {reason} (connection.blocked, an alarm)")


class ChannelLost(ConnectionError):
    """The channel or its connection closed. Its deliveries in flight will come again.

    Attributes:
        refused: a permission was missing.
        closed_over: the broker closed this channel alone, over an operation on it.

    Args:
        cause: aiormq's error, or a reason; it may be empty.
        said: the broker's reason for closing the connection, if it gave one.
    """

    def __init__(self, cause: BaseException | str | None, said: str | None = None) -> None:
        reason = f"the broker closed the connection: {said}" if said else GONE
        # An AMQPError without text only says that the channel is closed: by ourselves, or before a
        # call.
        if isinstance(cause, str) or (isinstance(cause, AMQPError) and cause.args[:1] not in ((), (None,))):
            reason = str(cause) or reason
        super().__init__(reason)
        self.refused = isinstance(cause, ChannelAccessRefused)
        self.closed_over = isinstance(cause, ChannelClosed)


@contextmanager
def lost_with(channel: AbstractChannel | aio_pika.Connection) -> Iterator[None]:
    """Raise :class:`ChannelLost` for all errors of aiormq when a channel or a connection ends.

    Besides its own errors, aiormq raises a bare ``Exception`` if the connection's end arrives with
    its last frames. After missed heartbeats it raises ``CancelledError`` in a task that was not
    cancelled.
    """
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError as error:
        if not channel.is_closed or (task and task.cancelling() > cancelling):
            raise
        raise ChannelLost(None, _said(channel)) from error
    except Exception as error:
        if not (channel.is_closed or isinstance(error, CONNECTION_EXCEPTIONS)):
            raise
        raise ChannelLost(error, _said(channel)) from error


async def unless_blocked(watch: Watch, publishing: Coroutine[Any, Any, T]) -> T:
    """Wait for a call that publishes, but only while the broker takes publications.

    Raises:
        PublishersBlocked: it takes none. It may still take this one when the alarm ends.
    """
    work = asyncio.ensure_future(publishing)
    blocked = asyncio.ensure_future(watch.blocked_event.wait())
    try:
        await asyncio.wait((work, blocked), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and watch.blocked is not None:
            raise PublishersBlocked(watch.blocked)
        return await work
    finally:
        for each in (work, blocked):
            each.cancel()
        await asyncio.wait((work, blocked), timeout=BLOCKED_CLOSE_TIMEOUT)


def _said(channel: AbstractChannel | aio_pika.Connection) -> str | None:
    # aio-pika has no public way from a channel to its connection.
    watch = watch_of(getattr(channel, "_connection", channel))
    return watch.closed if watch else None


async def connect(urls: str, *, name: str, connection_class: type[ConnectionType]) -> ConnectionType:
    """Connect to the first of these URLs that answers.

    Args:
        urls: one URL, or several that are separated by commas: the nodes of a cluster.
        name: the connection's name in the management UI.
        connection_class: ``aio_pika.Connection``, or a subclass.

    Raises:
        BrokerUnavailable: no broker answers in time, or its refusal may pass.
        BrokerRefused: every URL's broker refuses the login, the virtual host, or TLS.
    """
    failures: list[BrokerUnavailable | BrokerRefused] = []
    for url in split_urls(urls):
        try:
            return await _connect(URL(url), name, connection_class)
        except (BrokerUnavailable, BrokerRefused) as failure:
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    reasons = "; ".join(str(failure) for failure in failures)
    if all(isinstance(failure, BrokerRefused) for failure in failures):
        raise BrokerRefused(reasons) from failures[-1]
    raise BrokerUnavailable(reasons) from failures[-1]


@asynccontextmanager
async def connected(
    urls: str, *, name: str, connection_class: type[ConnectionType]
) -> AsyncIterator[ConnectionType]:
    """A connection that is closed at the end. Arguments and errors are those of :func:`connect`."""
    connection = await connect(urls, name=name, connection_class=connection_class)
    try:
        yield connection
    finally:
        await close_quietly(connection)


async def close_quietly(resource: aio_pika.Connection | AbstractChannel) -> None:
    """Close a connection or a channel in any state, within :data:`CLOSE_TIMEOUT` seconds."""
    watch = watch_of(resource) or watch_of(getattr(resource, "_connection", None))
    blocked = watch is not None and watch.blocked is not None
    with suppress(Exception):  # the edge: after any error the socket is given up
        async with asyncio.timeout(BLOCKED_CLOSE_TIMEOUT if blocked else CLOSE_TIMEOUT):
            await resource.close()


async def _connect(url: URL, name: str, connection_class: type[ConnectionType]) -> ConnectionType:
    where = url.with_user(None).with_password(None).with_query(None)
    password_file = url.query.get(PASSWORD_FILE)
    _check_tls_files(url)
    try:
        url = with_password(url)
    except PasswordUnreadable as error:
        raise BrokerUnavailable(f"No login at {where}: {error}") from error
    connection = connection_class(url.update_query(name=name), **_options(connection_class))
    try:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.connect()
                return connection
        except BaseException:
            await connection.close()  # or aio-pika tries to when it is collected, in any thread
            raise
    except (AuthenticationError, ProbableAuthenticationError) as error:
        raise BrokerRefused(
            f"The broker at {where} refuses the login: check the user and the password"
            + (f", which is that of the file '{password_file}'" if password_file else "")
            + f" ({error})"
        ) from error
    except (InvalidFrameError, ConnectionClosed) as error:
        # aiormq expects Open-Ok: it takes a Close for a wrong frame.
        watch = watch_of(connection)
        said = watch.closed if watch else None
        if said is None and not isinstance(error, ConnectionClosed):
            raise BrokerUnavailable(f"No broker answers at {where}: {error}") from error
        refused = BrokerUnavailable if said and _LIMIT.search(said) else BrokerRefused
        raise refused(f"The broker at {where} refuses the connection: {said or error}") from error
    except (AMQPError, OSError, TimeoutError, StopAsyncIteration) as error:
        # aiormq raises StopAsyncIteration if the connection ends in the middle of the handshake.
        if wrong := _CERTIFICATE_WRONG.search(str(error)):
            raise TLSRefused(f"No TLS with the broker at {where}: {wrong[1]}") from error
        raise BrokerUnavailable(f"No broker answers at {where}: {_reason(error, url)}") from error


def _check_tls_files(url: URL) -> None:
    for name in ("cafile", "certfile", "keyfile") if url.scheme == "amqps" else ():
        path = url.query.get(name)
        if path and not os.access(path, os.R_OK):
            raise TLSRefused(f"The file '{path}', which is the {name} of the broker's URL, can't be read")


def _options(connection_class: type[aio_pika.Connection]) -> dict[str, Any]:
    """Try several addresses of a host side by side. uvloop can't do that, nor can asyncio with
    eager tasks before Python 3.12.9 and 3.13.2. A connection that opens its own socket does it
    itself.
    """
    plain = connection_class in (aio_pika.Connection, WatchedConnection)
    loop = asyncio.get_running_loop()
    capable = isinstance(loop, asyncio.BaseEventLoop) and loop.get_task_factory() is None
    return {"happy_eyeballs_delay": HAPPY_EYEBALLS_DELAY} if plain and capable else {}


def _reason(error: BaseException, url: URL) -> str:
    reason = str(error) or type(error).__name__
    broken = (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError)
    if url.scheme == "amqps" and isinstance(error.__cause__ or error, broken):
        reason += _PERHAPS_CERTIFICATE
    return reason
