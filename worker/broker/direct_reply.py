"""Direct reply-to: where a reply queue's name is no queue but tells RabbitMQ the requester's
channel. Knows no requests.

RabbitMQ closes the connection of whoever publishes to such a name when it is malformed, or names a
node that doesn't run in its cluster: one that is being restarted, one of another cluster from which
the request came, or one that somebody made up. On the worker's connection that would cost all that
is in flight on it. So a node that has not been seen is tried on a connection of its own first. And
a name that RabbitMQ itself never writes is not published to at all.
"""

import asyncio
import base64
import re
import struct
from collections import OrderedDict
from functools import lru_cache
from time import monotonic

import aio_pika
import structlog

from worker.amqp.watch import WatchedConnection
from worker.broker.connection import FORCED, BrokerRefused, close_quietly, connect
from worker.contract.immutable import immutable
from worker.contract.message import DIRECT_REPLY_TO

log = structlog.get_logger(__name__)

# As RabbitMQ writes it (``rabbit_direct_reply_to:compute_key_and_suffix_v2``, the same in 3.10 and
# 4): the id of the requester's process in Erlang's external term format, and a key of 16 bytes,
# both in base64.
_NAME = re.compile(re.escape(DIRECT_REPLY_TO) + r"\.([A-Za-z0-9+/]+={0,2})\.[A-Za-z0-9+/]{22}==", re.ASCII)
# Version and kind of the term, and its node as an atom with two bytes of length. RabbitMQ puts a
# hash of 27 bits (``erlang:phash2``) in place of the node's name.
_HEAD = b"\x83Xv"
_NODE = re.compile(rb"reply@(0|[1-9][0-9]{0,8})")
_MAX_HASH = 2**27
# Behind the node: number, serial and creation of the process.
_PROCESS = struct.Struct(">III")
# Bits that a process's number and serial may have in any version of Erlang. A process of the
# broker's own node must not have more than its version gives it; some give more than these.
_NUMBER_BITS, _SERIAL_BITS = 15, 13
# A key of no channel: what is published under it reaches nobody.
_NOBODY = base64.b64encode(bytes(16)).decode()
# A cluster has few nodes; more names than that are made up.
_MAX_REFUSED = _MAX_KNOWN = 1000
# A broker that doesn't answer here doesn't answer elsewhere either; seconds.
_TRY_TIMEOUT = 5.0
# A node that doesn't run may run again: it is tried anew after so many seconds.
_REFUSED_FOR = 10.0
# So many are tried at a time: each costs the broker a connection that it closes with an error.
_TRIALS = 4


_Key = tuple[bytes, int, int, int]


@immutable
class _Requester:
    """The process that a name tells, as far as it matters whether the broker takes the name.

    Attributes:
        node: the node's name, hashed.
        creation: which of the node's lives it is of; 0 where its number and serial are such as any
            version of Erlang takes.
        number_bits, serial_bits: how many bits these have, at the least those that any takes.
    """

    node: bytes
    creation: int
    number_bits: int
    serial_bits: int

    @property
    def key(self) -> _Key:
        """The same for names that the broker treats alike."""
        return self.node, self.creation, self.number_bits, self.serial_bits

    def nobody(self) -> str:
        """A name that is treated like this one, and reaches nobody."""
        number, serial = 2**self.number_bits - 1, 2**self.serial_bits - 1
        term = _HEAD + struct.pack(">H", len(self.node)) + self.node
        term += _PROCESS.pack(number, serial, self.creation)
        return f"{DIRECT_REPLY_TO}.{base64.b64encode(term).decode()}.{_NOBODY}"


class DirectReplies:
    """Tells which direct reply-to names can be published to.

    Args:
        urls: the broker.
        name: the name of the connections on which nodes are tried.
    """

    def __init__(self, urls: str, name: str) -> None:
        self._urls = urls
        self._name = name
        self._known: dict[_Key, None] = {}
        self._refused: dict[_Key, float] = {}
        self._answers: dict[_Key, asyncio.Future[bool]] = {}
        # Those that wait to be tried: first those that more than one asked for, as made-up ones are
        # mostly asked for once.
        self._waiting: OrderedDict[_Key, _Requester] = OrderedDict()
        self._trials: set[asyncio.Task[None]] = set()

    def may_publish(self, queue: str) -> bool | None:
        """Whether the broker takes a reply to this name; True for every name that is not of direct
        reply-to, None where :meth:`try_to_publish` has to tell.
        """
        if not queue.startswith(DIRECT_REPLY_TO):
            return True
        requester = _requester(queue)
        if requester is None:
            return False
        if requester.key in self._known:
            return True
        return False if monotonic() < self._refused.get(requester.key, 0.0) else None

    async def try_to_publish(self, queue: str) -> bool:
        """Find out, on a connection of its own; those who ask for one node share its trial."""
        requester = _requester(queue)
        assert requester is not None
        key = requester.key
        if key not in self._answers:
            self._answers[key] = asyncio.get_running_loop().create_future()
            self._waiting[key] = requester
        elif key in self._waiting:
            self._waiting.move_to_end(key, last=False)
        if len(self._trials) < _TRIALS:
            trial = asyncio.create_task(self._try_all())
            self._trials.add(trial)
            trial.add_done_callback(self._trials.discard)
        return await asyncio.shield(self._answers[key])

    def close(self) -> None:
        """Try no more: nobody waits for it any longer."""
        self._waiting.clear()
        for trial in self._trials:
            trial.cancel()

    async def _try_all(self) -> None:
        while self._waiting:
            key, requester = self._waiting.popitem(last=False)
            taken = await self._try(requester)
            if len(self._refused) >= _MAX_REFUSED:
                self._refused.clear()
            if taken:
                self._known[key] = None
                self._forget_made_up()
            elif taken is False:
                self._refused[key] = monotonic() + _REFUSED_FOR
            self._answers.pop(key).set_result(taken is not False)

    def _forget_made_up(self) -> None:
        """Of the known ones only those with a creation can be made up in any number."""
        if len(self._known) > _MAX_KNOWN:
            made_up = next((key for key in self._known if key[1]), None)
            if made_up is not None:
                del self._known[made_up]

    async def _try(self, requester: _Requester) -> bool | None:
        """Whether the broker takes it; None where nothing was learned: the reply is published as it
        would have been.
        """
        queue = requester.nobody()
        try:
            connection = await connect(self._urls, name=self._name, connection_class=WatchedConnection)
        except (BrokerRefused, OSError) as error:
            log.warning("direct_reply_not_tried", error=str(error))
            return None
        try:
            async with asyncio.timeout(_TRY_TIMEOUT):
                channel = await connection.channel()
                await channel.default_exchange.publish(aio_pika.Message(b""), queue, mandatory=False)
        except TimeoutError:
            return None
        except (Exception, asyncio.CancelledError) as error:  # aiormq's, of a connection that ends
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            reason = connection.frames.closed
            log.warning(
                "direct_reply_to_unknown_node", node=requester.node.decode(), error=reason or str(error)
            )
            # One that ended for another reason, or for none, is no verdict on the node.
            return False if reason is not None and not reason.startswith(FORCED) else None
        finally:
            await close_quietly(connection)
        return True


@lru_cache(maxsize=1000)  # a requester has one name for all its requests
def _requester(queue: str) -> _Requester | None:
    """The requester of a name; None where RabbitMQ can't have written it."""
    name = _NAME.fullmatch(queue)
    if name is None:
        return None
    try:
        term = base64.b64decode(name[1], validate=True)
    except ValueError:
        return None
    head, end = term[: len(_HEAD) + 2], len(term) - _PROCESS.size
    node = _NODE.fullmatch(term[len(head) : max(end, 0)])
    if node is None or head != _HEAD + struct.pack(">H", len(node[0])) or int(node[1]) >= _MAX_HASH:
        return None
    number, serial, creation = _PROCESS.unpack_from(term, end)
    number_bits, serial_bits = number.bit_length(), serial.bit_length()
    if number_bits <= _NUMBER_BITS and serial_bits <= _SERIAL_BITS:
        return _Requester(node[0], 0, _NUMBER_BITS, _SERIAL_BITS)
    return _Requester(node[0], creation, max(number_bits, _NUMBER_BITS), max(serial_bits, _SERIAL_BITS))
