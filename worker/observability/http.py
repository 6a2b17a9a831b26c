"""The side port: liveness, readiness, metrics and the contract's document over HTTP. It takes no
requests for runs.

It runs on the worker's own event loop, so an answer from ``/livez`` shows that the loop runs.
Clients of the port cost the worker little: a connection serves one request, connections are few and
short, and all readers share one check of the database a second.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from worker.contract.errors import Fault
from worker.observability.metrics import dependency_up, readiness

log = structlog.get_logger(__name__)

# Seconds to wait after a failed accept. A guess.
ACCEPT_AGAIN_SECONDS = 0.1
# An answer takes half a millisecond, so this many take a tenth of the event loop.
ANSWERS_PER_SECOND = 200
# Limits of a line or header, in bytes, and of headers. A browser sends 20, with cookies of 4 KB.
LINE_MAX = 4096
HEADERS_MAX = 32

# aiohttp logs a traceback for bytes that are not HTTP, and anyone may send those.
_silent = logging.Logger("aiohttp.server", logging.CRITICAL + 1)

Ping = Callable[[], Awaitable[None]]


class PortTaken(Exception):
    """The side port can't be opened. The message has the reason."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the port, in seconds if nothing else is said.

    Attributes:
        ping: a database counts as down after this time without an answer. Most probes wait longer.
        fresh: a check of the database is valid for this time.
        connection: the longest connection. A probe takes milliseconds, or ``ping`` at most.
        connections: the number of connections at once. Beyond it a new one replaces another, so
            that a probe always gets in. Each takes a file descriptor and, with the largest headers,
            128 KiB. Probes and scrapers need a few.
    """

    ping: float = 2.0
    fresh: float = 1.0
    connection: float = 10.0
    connections: int = 200


LIMITS = Limits()


@asynccontextmanager
async def side_port(
    host: str, port: int, ping: Ping, *, asyncapi: bytes, demanded: bool, limits: Limits = LIMITS
) -> AsyncIterator[str]:
    """Serve ``/livez``, ``/readyz``, ``/metrics`` and ``/asyncapi.json`` within the context. Yields
    the URL.

    Args:
        port: the port. 0 means any free one.
        ping: raises Fault if the database is down.
        asyncapi: the document, as JSON.
        demanded: use this port only. Otherwise a free port is used, and logged, if this one is
            taken (by another worker on the machine).

    Raises:
        PortTaken: the port is demanded and taken.
    """
    database = _Database(ping, limits)

    async def readyz(_: web.Request) -> web.Response:
        state = await _state(database)
        return web.json_response(state, status=200 if state["ready"] else 503)

    async def metrics(request: web.Request) -> web.Response:
        await _state(database)
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(REGISTRY), headers={"Content-Type": content_type})

    async def document(_: web.Request) -> web.Response:
        return web.Response(body=asyncapi, content_type="application/json")

    # Connections whose request waits for its turn or for the database.
    asking: set[web.RequestHandler] = set()
    app = web.Application(middlewares=[_one_at_a_time(asking)])
    pages = {"/livez": _livez, "/readyz": readyz, "/metrics": metrics, "/asyncapi.json": document}
    app.add_routes([web.get(path, page) for path, page in pages.items()])
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_silent,
        handle_signals=False,
        handler_cancellation=True,  # a connection that was replaced takes no turn
        shutdown_timeout=1.0,
        max_line_size=LINE_MAX,
        max_field_size=LINE_MAX,
        max_headers=HEADERS_MAX,
        # Bodies are ignored: don't decompress them, don't read them to the end.
        auto_decompress=False,
        lingering_time=0,
    )
    await runner.setup()
    assert runner.server is not None
    connections = _Connections(runner.server, asking, limits)
    tasks = [asyncio.create_task(connections.end_old_ones())]
    listening: list[socket.socket] = []
    try:
        listening += await _listen(host, port, demanded=demanded)
        tasks += [asyncio.create_task(connections.accept(each)) for each in listening]
        url = f"http://{host}:{listening[0].getsockname()[1]}"
        log.info("http", url=url, paths=" ".join(pages))
        yield url
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for each in listening:
            each.close()
        database.close()
        await runner.cleanup()


async def _listen(host: str, port: int, *, demanded: bool) -> list[socket.socket]:
    """A socket for each address of the host. Raises the errors of :func:`side_port`."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = dict.fromkeys((family, address[:2]) for family, _, _, _, address in found)
        listening = [socket.create_server(address, family=family) for family, address in addresses]
    except OSError as error:
        if demanded:
            raise PortTaken(f"WORKER_HTTP_HOST {host}, WORKER_HTTP_PORT {port}: {error}") from error
        log.warning("http_port_taken", host=host, port=port, error=str(error), instead="a free one")
        return await _listen(host, 0, demanded=True)
    for each in listening:
        each.setblocking(False)
    return listening


class _Connections:
    """Keeps connections few and short, whatever the clients do.

    Args:
        server: serves the connections.
        asking: the connections whose request waits for its answer.
    """

    def __init__(self, server: web.Server, asking: Container[web.RequestHandler], limits: Limits) -> None:
        self._server = server
        self._limits = limits
        self._asking = asking
        self._since: dict[web.RequestHandler, float] = {}

    async def accept(self, listening: socket.socket) -> None:
        """Accept one connection in each turn of the event loop, so that a probe's request is read
        before many others come in.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
                self._make_room()
                _, connection = await loop.connect_accepted_socket(self._server, accepted)
                self._since[connection] = monotonic()
            except Exception as error:  # the edge: the client has gone, or no file descriptor is left
                log.debug("http_not_accepted", error=str(error))
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)

    def _make_room(self) -> None:
        """If there are too many, end one of the larger group: the newest that waits for its answer,
        or the oldest of the others.

        A probe belongs to the others until its request is read, so a crowd of readers does not end
        it. A silent crowd would have to fill them all first.
        """
        open_ = self._server.connections
        if len(open_) < self._limits.connections:
            return
        asking = [each for each in open_ if each in self._asking]
        if len(asking) > len(open_) / 2:
            _abort(asking[-1])
        else:
            _abort(next(each for each in open_ if each not in self._asking))

    async def end_old_ones(self) -> None:
        """End connections that are open for too long."""
        while True:
            await asyncio.sleep(self._limits.connection / 10)
            open_ = self._server.connections
            self._since = {each: self._since[each] for each in open_ if each in self._since}
            for each in open_:
                if monotonic() - self._since.get(each, monotonic()) > self._limits.connection:
                    _abort(each)


def _abort(connection: web.RequestHandler) -> None:
    """End a connection now. Closing it would wait for the client to read everything."""
    if connection.transport is not None:
        connection.transport.abort()


class _Turns:
    """Limits answers: one at a time, and ``ANSWERS_PER_SECOND``."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._next_at = 0.0

    async def wait(self) -> None:
        """Wait for a turn."""
        async with self._lock:
            if (left := self._next_at - monotonic()) > 0:
                await asyncio.sleep(left)
            self._next_at = monotonic() + 1 / ANSWERS_PER_SECOND


def _one_at_a_time(asking: set[web.RequestHandler]) -> Middleware:
    """Answers take turns and end their connection. ``/livez`` has turns of its own."""
    alive, others = _Turns(), _Turns()

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        try:
            if request.path == "/livez":
                await alive.wait()
            else:
                asking.add(request.protocol)
                await others.wait()
            response = await handler(request)
        except web.HTTPException as refused:
            response = web.Response(status=refused.status, text=refused.text, headers=refused.headers)
        except Exception:  # the edge: a failing request harms no other
            log.exception("http_failed", path=request.path)
            response = web.Response(status=500)
        finally:
            asking.discard(request.protocol)
        response.force_close()
        return response

    return answer


class _Database:
    """Checks the database, once for all requests within a second."""

    def __init__(self, ping: Ping, limits: Limits) -> None:
        self._ping = ping
        self._limits = limits
        # The last or the running ping: with a silent database it may take long to fail.
        self._pinging: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[str | None] | None = None
        self._fresh_until = 0.0

    async def away(self) -> str | None:
        """Why the database is down. None if it answers."""
        if self._looking is None or (self._looking.done() and monotonic() > self._fresh_until):
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> str | None:
        away = None
        if self._pinging is None or self._pinging.done():
            self._pinging = asyncio.ensure_future(self._ping())
        done, _ = await asyncio.wait((self._pinging,), timeout=self._limits.ping)
        if not done:
            away = f"no answer within {self._limits.ping:g} seconds"
        elif isinstance(error := self._pinging.exception(), Fault):
            away = str(error)
        elif error is not None:
            raise error
        # An idle worker would not notice that its database is down.
        dependency_up.labels("database").set(away is None)
        self._fresh_until = monotonic() + self._limits.fresh
        return away

    def close(self) -> None:
        """Stop checking."""
        for task in (self._looking, self._pinging):
            if task is not None:
                task.cancel()
                task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


async def _state(database: _Database) -> dict[str, Any]:
    """Whether requests are served, and for broker and database ``ok`` or the reason why not. A
    missing deployment of plain messages is a reason, too.
    """
    away = readiness.database or await database.away()
    broker, deployment = readiness.broker, readiness.deployment
    state = {
        "ready": broker is None and away is None and deployment is None,
        "broker": broker or "ok",
        "database": away or "ok",
    }
    if deployment is not None:
        state["deployment"] = deployment
    # None of these makes a worker unready: good requests are served.
    if readiness.dead_letters is not None:
        state["dead_letters"] = readiness.dead_letters
    if readiness.events is not None:
        state["events"] = readiness.events
    if readiness.states is not None:
        state["states"] = readiness.states
    if topology := "; ".join(filter(None, (readiness.topology, *readiness.vanished.values()))):
        state["topology"] = topology
    if readiness.policies is not None:
        state["policies"] = readiness.policies
    return state


async def _livez(_: web.Request) -> web.Response:
    return web.json_response({"alive": True})
