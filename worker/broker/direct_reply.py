"""Direct reply-to: where a reply queue's name is no queue but tells RabbitMQ the requester's
channel. Knows no requests.

RabbitMQ closes the connection of whoever publishes to such a name when it is malformed, or names a
node that doesn't run in its cluster: one that is being restarted, one of another cluster from which
the request came, or one that somebody made up. On the worker's connection that would cost all that
is in flight on it. So a node that has not been seen is tried on a connection of its own first.
"""

import asyncio
import base64
from collections import OrderedDict
from time import monotonic

import aio_pika
import structlog

from worker.broker.connection import BrokerRefused, close_quietly, connect
from worker.contract.message import DIRECT_REPLY_TO

log = structlog.get_logger(__name__)

_PREFIX = f"{DIRECT_REPLY_TO}."
# Erlang's external term format: version, process id, and its node's name as an atom with so many
# bytes of length.
_NODE_LENGTH = {b"\x83Xv": 2, b"\x83Xd": 2, b"\x83Xw": 1, b"\x83gv": 2, b"\x83gd": 2, b"\x83gw": 1}
# Behind the node's name: number, serial and creation of the process; the older form has a creation
# of one byte.
_BEHIND_NODE = {b"X": 12, b"g": 9}
# The key of no channel: what is published under it reaches nobody.
_NOBODY = "AAAA"
# A cluster has few nodes; more names than that are made up.
_MAX_REFUSED = 1000
# A broker that doesn't answer here doesn't answer elsewhere either; seconds.
_TRY_TIMEOUT = 5.0
# A node that doesn't run may run again: it is tried anew after so many seconds.
_REFUSED_FOR = 10.0
# So many are tried at a time: each costs the broker a connection that it closes with an error.
_TRIALS = 4


class DirectReplies:
    """Tells which direct reply-to names can be published to.

    Args:
        urls: the broker.
        name: the name of the connections on which nodes are tried.
    """

    def __init__(self, urls: str, name: str) -> None:
        self._urls = urls
        self._name = name
        self._known: set[bytes] = set()
        self._refused: dict[bytes, float] = {}
        self._answers: dict[bytes, asyncio.Future[bool]] = {}
        # Nodes that wait to be tried, with a name of each: first those that more than one asked
        # for, as made-up ones are mostly asked for once.
        self._waiting: OrderedDict[bytes, str] = OrderedDict()
        self._trials: set[asyncio.Task[None]] = set()

    def may_publish(self, queue: str) -> bool | None:
        """Whether the broker takes a reply to this name; True for every name that is not of direct
        reply-to, None where :meth:`try_to_publish` has to tell.
        """
        if not queue.startswith(DIRECT_REPLY_TO):
            return True
        node = _node(queue)
        if node is None:
            return False
        if node in self._known:
            return True
        return False if monotonic() < self._refused.get(node, 0.0) else None

    async def try_to_publish(self, queue: str) -> bool:
        """Find out, on a connection of its own; those who ask for one node share its trial."""
        node = _node(queue)
        assert node is not None
        if node not in self._answers:
            self._answers[node] = asyncio.get_running_loop().create_future()
            self._waiting[node] = queue
        elif node in self._waiting:
            self._waiting.move_to_end(node, last=False)
        if len(self._trials) < _TRIALS:
            trial = asyncio.create_task(self._try_all())
            self._trials.add(trial)
            trial.add_done_callback(self._trials.discard)
        return await asyncio.shield(self._answers[node])

    def close(self) -> None:
        """Try no more: nobody waits for it any longer."""
        self._waiting.clear()
        for trial in self._trials:
            trial.cancel()

    async def _try_all(self) -> None:
        while self._waiting:
            node, queue = self._waiting.popitem(last=False)
            taken = await self._try(queue)
            if len(self._refused) >= _MAX_REFUSED:
                self._refused.clear()
            if taken:
                self._known.add(node)
            elif taken is False:
                self._refused[node] = monotonic() + _REFUSED_FOR
            self._answers.pop(node).set_result(taken is not False)

    async def _try(self, queue: str) -> bool | None:
        """Whether the broker takes it; None where nothing was learned: the reply is published as it
        would have been.
        """
        channel_of = queue.removeprefix(_PREFIX).partition(".")[0]
        try:
            connection = await connect(self._urls, name=self._name, connection_class=aio_pika.Connection)
        except (BrokerRefused, OSError) as error:
            log.warning("direct_reply_not_tried", error=str(error))
            return None
        try:
            async with asyncio.timeout(_TRY_TIMEOUT):
                channel = await connection.channel()
                await channel.default_exchange.publish(
                    aio_pika.Message(b""), f"{_PREFIX}{channel_of}.{_NOBODY}", mandatory=False
                )
        except TimeoutError:
            return None
        except (Exception, asyncio.CancelledError) as error:  # aiormq's, of a connection that ends
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            log.warning("direct_reply_to_unknown_node", reply_to=queue, error=str(error))
            return False
        finally:
            await close_quietly(connection)
        return True


def _node(queue: str) -> bytes | None:
    """The name of the requester's node, as the broker writes it; None where it can't have written
    this.
    """
    if not queue.startswith(_PREFIX):
        return None
    encoded = queue.removeprefix(_PREFIX).partition(".")[0]
    try:
        term = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        return None
    length = _NODE_LENGTH.get(term[:3])
    if length is None:
        return None
    start = 3 + length
    end = start + int.from_bytes(term[3:start])
    return term[start:end] if len(term) == end + _BEHIND_NODE[term[1:2]] else None
