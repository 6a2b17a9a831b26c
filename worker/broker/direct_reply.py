"""Direct reply-to: such a name encodes the requester's channel, and is no queue. Knows no requests.

RabbitMQ closes the publisher's connection if such a name is malformed, or if its node doesn't run
in the cluster. That node may be restarting, belong to another cluster, or be made up. On the
worker's own connection that would cost everything in flight. So an unknown node is first tried on a
separate connection. A name that RabbitMQ can't have written gets no publication at all.
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

# RabbitMQ's format (``rabbit_direct_reply_to:compute_key_and_suffix_v2``, the same in 3.10 and 4):
# the id of the requester's process in Erlang's external term format, and a key of 16 bytes, both in
# base64.
_NAME = re.compile(re.escape(DIRECT_REPLY_TO) + r"\.([A-Za-z0-9+/]+={0,2})\.[A-Za-z0-9+/]{22}==", re.ASCII)
# Version and type of the term, and the tag of its node: an atom with a length of two bytes.
# RabbitMQ replaces the node's name with a hash of 27 bits (``erlang:phash2``).
_HEAD = b"\x83Xv"
_NODE = re.compile(rb"reply@(0|[1-9][0-9]{0,8})")
_MAX_HASH = 2**27
# After the node: number, serial and creation of the process.
_PROCESS = struct.Struct(">III")
# Every version of Erlang accepts numbers and serials of this many bits. Some versions accept more.
# A process of the broker's own node is refused if it has more than the broker's version accepts.
_NUMBER_BITS, _SERIAL_BITS = 15, 13
# No channel has this key, so a publication with it reaches no receiver.
_NOBODY = base64.b64encode(bytes(16)).decode()
# A cluster has few nodes. If there are more names than this, they are made up.
_MAX_REFUSED = _MAX_KNOWN = 1000
# Seconds for the broker's answer to a trial.
_TRY_TIMEOUT = 5.0
# Try a refused node again after this many seconds: it may have been restarted.
_REFUSED_FOR = 10.0
# Trials at a time. A failed one costs the broker a connection, which it closes with an error.
_TRIALS = 4


_Key = tuple[bytes, int, int, int]


@immutable
class _Requester:
    """The parts of a requester's process id that decide whether the broker accepts its name.

    Attributes:
        node: the node's name, hashed.
        creation: identifies a start of the node; 0 if every version of Erlang accepts the
            process's number and serial.
        number_bits, serial_bits: their lengths; at least those that every version accepts.
    """

    node: bytes
    creation: int
    number_bits: int
    serial_bits: int

    @property
    def key(self) -> _Key:
        """Equal for names that the broker treats alike."""
        return self.node, self.creation, self.number_bits, self.serial_bits

    def nobody(self) -> str:
        """A name that the broker treats like this one, but without a requester behind it."""
        number, serial = 2**self.number_bits - 1, 2**self.serial_bits - 1
        term = _HEAD + struct.pack(">H", len(self.node)) + self.node
        term += _PROCESS.pack(number, serial, self.creation)
        return f"{DIRECT_REPLY_TO}.{base64.b64encode(term).decode()}.{_NOBODY}"


class DirectReplies:
    """Knows which direct reply-to names are safe to publish to.

    Args:
        urls: the broker's.
        name: of the connections for trials.
    """

    def __init__(self, urls: str, name: str) -> None:
        self._urls = urls
        self._name = name
        self._known: dict[_Key, None] = {}
        self._refused: dict[_Key, float] = {}
        self._answers: dict[_Key, asyncio.Future[bool]] = {}
        # Nodes asked for twice go first: forged names are usually asked for once.
        self._waiting: OrderedDict[_Key, _Requester] = OrderedDict()
        self._trials: set[asyncio.Task[None]] = set()

    def may_publish(self, queue: str) -> bool | None:
        """True if the broker accepts replies to this name, as for every ordinary queue. None if
        :meth:`try_to_publish` must find out.
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
        """Try the name's node on a separate connection. Concurrent calls for one node share its
        trial.
        """
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
        """Stop all trials. No call of :meth:`try_to_publish` may be waiting."""
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
        """Forget a known node with a creation: only those can be made up in any number."""
        if len(self._known) > _MAX_KNOWN:
            made_up = next((key for key in self._known if key[1]), None)
            if made_up is not None:
                del self._known[made_up]

    async def _try(self, requester: _Requester) -> bool | None:
        """True if the broker accepts it. None if the trial shows nothing: then the reply is
        published anyway.
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
        except (Exception, asyncio.CancelledError) as error:  # aiormq's, as the connection ends
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            reason = connection.frames.closed
            log.warning(
                "direct_reply_to_unknown_node", node=requester.node.decode(), error=reason or str(error)
            )
            # A forced close, or one without a reason, says nothing about the node.
            return False if reason is not None and not reason.startswith(FORCED) else None
        finally:
            await close_quietly(connection)
        return True


@lru_cache(maxsize=1000)  # a requester has one name for all its requests
def _requester(queue: str) -> _Requester | None:
    """The requester in a name; None if RabbitMQ can't have written the name."""
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
