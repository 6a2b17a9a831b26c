"""One stay at the broker: connection, channel, topology, consumer; knows nothing of requests and of
the database.

Whatever lets go (``basic.cancel`` because the queue was deleted, the channel, the connection) ends
the session. There is one way on from there: open another. What was in flight is delivered again by
the broker.
"""

import asyncio
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import aiormq
import structlog
from aiormq.abc import AbstractConnection
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from pamqp import commands as spec
from yarl import URL

from worker.broker import properties
from worker.broker.acknowledgement import Acknowledgements
from worker.broker.channel import BulkChannel, ChannelLost
from worker.broker.confirmation import Confirmation
from worker.broker.delivery import Delivery
from worker.broker.direct_reply import DirectReplies
from worker.broker.publication import Publication
from worker.broker.topology import Topology
from worker.broker.transport import BulkConnection
from worker.mailbox import Mailbox

log = structlog.get_logger(__name__)

# A connection attempt that hangs (a silent firewall) counts as failed after this many seconds.
CONNECT_TIMEOUT = 10.0
# A quorum queue that has no leader yet, as after the broker was killed, keeps whoever declares or
# consumes it waiting (for 65 seconds and an INTERNAL_ERROR in RabbitMQ 3.10); a new session is
# served as soon as it has one. Seconds.
QUEUE_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0

# What OpenSSL says where only another certificate, key or port will help; what it says besides
# comes of connections that break.
_CERTIFICATE_WRONG = re.compile(
    r"\[[A-Z0-9]+: \w*(?:CERT|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED|WRONG_VERSION|PROTOCOL_VERSION|MISMATCH|PEM|KEY)\w*\]"
    r" (.+?)\.?(?: \(_ssl|$)"
)
# In TLS 1.3 a client writes before it hears what the server thinks of its certificate, and a reset
# then can outrun the answer.
_PERHAPS_CERTIFICATE = (
    "; perhaps it wants another client certificate, or one at all (cafile, certfile and keyfile)"
)
_TLS_FILES = ("cafile", "certfile", "keyfile")


class BrokerUnavailable(ConnectionError):
    """The broker cannot be reached now; it may be reached later."""


class BrokerRefused(Exception):
    """The broker answers, and says no: login, virtual host or permission. Its message says which."""


class TLSRefused(BrokerRefused):
    """The broker's certificate is not trusted, or ours is not; or one can't be read."""


class Session:
    """A consumer and a publisher on one channel of one connection.

    Made by :meth:`open`; ends by :meth:`close` or by itself, which :attr:`lost` tells.

    Attributes: topology: what was declared. direct_replies: which direct reply-to names can be
        published to. lost: done once the session has ended; its result is the reason in words.
        refused: whether it has ended for want of a permission. prefetch: how many deliveries the
        broker lets be unacknowledged by now; 0 when no more are taken.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        channel: BulkChannel,
        topology: Topology,
        direct_replies: DirectReplies,
    ) -> None:
        self.topology = topology
        self.direct_replies = direct_replies
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.refused = False
        self.prefetch = 0
        self._connection = connection
        self._channel = channel
        self._acknowledgements = Acknowledgements()
        self._consumer_tag: str | None = None
        self._changing = asyncio.Lock()
        self._stopped = False
        channel.closing.add_done_callback(self._channel_closed)
        channel.on_consumer_cancel_callbacks.add(self._consumer_cancelled)

    @classmethod
    async def open(cls, url: str, topology: Topology, *, name: str) -> "Session":
        """Connect and declare the topology.

        Args: url: ``amqp://`` or ``amqps://`` URL; TLS files and heartbeat in its query as aiormq
            takes them. topology: what to declare. name: the connection's name as the management UI
            shows it.

        Raises:
            BrokerUnavailable: nobody answers, or not in time.
            BrokerRefused: login, virtual host or permission refused.
            TopologyMismatch: something stands there under these names with other properties.
        """
        connection = await connect(url, name=name)
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT):
                await ensure(topology, connection)
                channel = await BulkChannel.open_on(connection)
        except TimeoutError as error:
            await _close(connection)
            raise BrokerUnavailable(f"The broker does not answer for the queue '{topology.queue}'") from error
        except BaseException as error:
            await _close(connection)
            # A bare Exception is aiormq's as well: of what was under way when the connection's end
            # came with its last frames.
            if isinstance(error, (aiormq.AMQPError, OSError)) or type(error) is Exception:
                raise BrokerUnavailable(
                    f"The broker closed the connection: {error or 'without a word'}"
                ) from error
            raise
        return cls(
            connection, channel, topology, DirectReplies(lambda: connect(url, name=f"{name} direct reply"))
        )

    @property
    def deliveries(self) -> Mailbox[Delivery]:
        """What came in. Closed when the session is lost or consuming has stopped."""
        return self._channel.deliveries

    @property
    def login(self) -> str | None:
        """The user that we are at the broker (publications may carry this ``user_id`` and no
        other).
        """
        user = URL(str(self._connection.url)).user
        return unquote(user) if user else None

    @property
    def frame_max(self) -> int:
        """The largest frame in bytes."""
        return self._channel.frame_max

    async def consume(self, prefetch: int) -> None:
        """Consume, with at most ``prefetch`` deliveries unacknowledged; returns once that many are
        let in, or none any more.

        Begins with one at a time, and goes on so while requests come that were delivered too often
        before: one of them may be what ended the worker that had it, and the broker counts that
        against all that were in flight.

        Raises:
            ChannelLost: the session ended.
        """
        await self._change_consumer(1)
        if prefetch > 1:
            await self._channel.calm.wait()
            await self._change_consumer(prefetch)

    async def stop_consuming(self) -> None:
        """Cancel the consumer. What was delivered until then stays in :attr:`deliveries`, which is
        closed behind it.

        Raises:
            ChannelLost: the session ended.
        """
        self._stopped = True
        self._channel.calm.set()
        await self._change_consumer(0)
        self.deliveries.close()

    async def _change_consumer(self, prefetch: int) -> None:
        """Put a consumer with this prefetch (none: 0) in the place of the one before; it is set for
        good when one begins.

        One change at a time, and none is cancelled half way: aiormq closes the channel then.
        """
        async with self._changing:
            if self.lost.done():
                raise ChannelLost(self.lost.result())
            tag, self._consumer_tag = self._consumer_tag, None
            try:
                async with asyncio.timeout(QUEUE_TIMEOUT):
                    if tag is not None:
                        await self._channel.basic_cancel(tag)
                    self.prefetch = 0 if self._stopped else prefetch
                    if self.prefetch:
                        await self._channel.basic_qos(prefetch_count=self.prefetch)
                        consumed = await self._channel.basic_consume(self.topology.queue, _never_called)
                        self._consumer_tag = consumed.consumer_tag
            except TimeoutError as error:
                raise ChannelLost(
                    f"the broker does not answer for the queue '{self.topology.queue}'"
                ) from error
            except (aiormq.AMQPError, ConnectionError, RuntimeError) as error:  # the last: closed already
                raise ChannelLost(str(error)) from error

    async def publish(self, publications: Sequence[Publication]) -> Confirmation:
        """Publish with confirms; see :meth:`BulkChannel.publish`."""
        return await self._channel.publish(publications)

    async def redeclare(self) -> None:
        """Declare the topology again: a queue of it is missing.

        Raises:
            ChannelLost: the session ended.
            TopologyMismatch: it can't be.
        """
        try:
            await ensure(self.topology, self._connection)
        except (aiormq.AMQPError, ConnectionError, RuntimeError) as error:  # the last: closed already
            raise ChannelLost(str(error)) from error

    async def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledge deliveries that are settled, each once.

        Raises:
            ChannelLost: the session ended; they will be delivered again.
        """
        acknowledgement = self._acknowledgements.settle(delivery.tag for delivery in deliveries)
        await self._channel.acknowledge(acknowledgement.single, up_to=acknowledgement.up_to)

    async def close(self) -> None:
        """Close the connection; the broker requeues what was not acknowledged."""
        await _close(self._connection)
        self._end("closed by the worker")

    def _channel_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self.refused = isinstance(error, ChannelAccessRefused)
        self._end(str(error) if error is not None and str(error) else "the connection to the broker is gone")

    def _consumer_cancelled(self, frame: spec.Basic.Cancel) -> None:
        self._end("the broker cancelled the consumer: its queue was deleted or moved")

    def _end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)


async def ensure(topology: Topology, connection: AbstractConnection) -> None:
    """Declare the topology or, as a user who may not, see that it stands.

    Raises:
        TopologyMismatch: it stands otherwise, or doesn't and may not be declared.
    """
    channel = await connection.channel()
    try:
        await topology.declare(channel)
    except ChannelAccessRefused as refused:
        channel = await connection.channel()
        await topology.check(channel, refused)
    await channel.close()


async def connect(url: str, *, name: str) -> BulkConnection:
    """Connect, with errors that a person understands.

    Raises:
        BrokerUnavailable, BrokerRefused: as :meth:`Session.open` does.
    """
    where = URL(url).with_user(None).with_password(None).with_query(None)
    _check_tls_files(URL(url))
    properties.install()
    connection = BulkConnection(URL(url).update_query(name=name))
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await connection.connect()
    except (AuthenticationError, ProbableAuthenticationError) as error:
        raise BrokerRefused(
            f"The broker at {where} refuses the login: check the user and the password"
        ) from error
    except InvalidFrameError as error:
        # aiormq waits for Open-Ok, and takes the Close that comes in its place for an error of its
        # own.
        await _close(connection)
        if "Connection.Close" not in str(error):
            raise BrokerUnavailable(f"No broker answers at {where}: {error}") from error
        raise BrokerRefused(
            f"The broker at {where} refuses the virtual host: it is not there, the user has no permission on it, "
            "or it has as many connections as it may"
        ) from error
    except ConnectionClosed as error:
        raise BrokerRefused(f"The broker at {where} closed the connection: {error}") from error
    except (aiormq.AMQPError, OSError, TimeoutError, StopAsyncIteration) as error:
        # The last of them is how aiormq tells of a connection that ends in the middle of the
        # handshake.
        await _close(connection)
        if wrong := _CERTIFICATE_WRONG.search(str(error)):
            raise TLSRefused(f"No TLS with the broker at {where}: {wrong[1]}") from error
        reason = str(error) or type(error).__name__
        broke = isinstance(
            error.__cause__ or error, (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError)
        )
        if broke and where.scheme == "amqps":
            reason += _PERHAPS_CERTIFICATE
        raise BrokerUnavailable(f"No broker answers at {where}: {reason}") from error
    return connection


def _check_tls_files(url: URL) -> None:
    for name in _TLS_FILES if url.scheme == "amqps" else ():
        path = url.query.get(name)
        if path and not os.access(path, os.R_OK):
            raise TLSRefused(f"The file '{path}', which is the {name} of the broker's URL, can't be read")


async def _close(connection: AbstractConnection) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.close()
    except Exception as error:  # the edge: whatever hinders a close, the socket is given up
        log.debug("connection_close_failed", error=str(error))


async def _never_called(message: Any) -> None:
    """BulkChannel keeps the deliveries; aiormq still wants a callback with its consumer."""
