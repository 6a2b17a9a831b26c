"""The side port: liveness, readiness and metrics over HTTP. Requests do not pass here.

It runs on the worker's own event loop, so an answer from ``/livez`` says that this loop runs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiohttp import web
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from worker.contract.errors import Fault
from worker.observability.metrics import dependency_up, readiness

log = structlog.get_logger(__name__)

# A database that does not answer within so many seconds counts as away. Most probes wait longer.
PING_TIMEOUT = 2.0

Ping = Callable[[], Awaitable[None]]


class PortTaken(Exception):
    """The side port can't be opened where it is wanted; the message says why."""


@asynccontextmanager
async def side_port(host: str, port: int, ping: Ping, *, demanded: bool) -> AsyncIterator[None]:
    """Serve ``/livez``, ``/readyz`` and ``/metrics`` within the context.

    Args:
        port: 0 for any free one.
        ping: raises Fault when the database is away.
        demanded: no other port will do. Else a free one is taken, and logged, if this one is taken
            (by a first worker on the machine).

    Raises:
        PortTaken: the port is demanded, and taken.
    """

    async def readyz(_: web.Request) -> web.Response:
        state = await _state(ping)
        return web.json_response(state, status=200 if state["ready"] else 503)

    async def metrics(request: web.Request) -> web.Response:
        await _state(ping)
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(REGISTRY), headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes([web.get("/livez", _livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            if demanded:
                raise PortTaken(f"WORKER_HTTP_HOST {host}, WORKER_HTTP_PORT {port}: {error}") from error
            log.warning("http_port_taken", host=host, port=port, error=str(error), instead="a free one")
            await web.TCPSite(runner, host, 0).start()
        log.info("http", url=f"http://{host}:{runner.addresses[0][1]}", paths="/livez /readyz /metrics")
        yield
    finally:
        await runner.cleanup()


async def _state(ping: Ping) -> dict[str, Any]:
    """Whether requests are served; and for broker and database ``ok``, or the reason why not."""
    database = readiness.database
    if database is None:
        pinging = asyncio.ensure_future(ping())
        # It is cancelled and not awaited: a task that waits for a silent database may take as long
        # as the silence to end.
        done, _ = await asyncio.wait((pinging,), timeout=PING_TIMEOUT)
        if not done:
            pinging.cancel()
            pinging.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            database = f"no answer within {PING_TIMEOUT:g} seconds"
        elif isinstance(error := pinging.exception(), Fault):
            database = str(error)
        elif error is not None:
            raise error
        # An idle worker would not notice by itself that its database is gone.
        dependency_up.labels("database").set(database is None)
    broker = readiness.broker
    state = {
        "ready": broker is None and database is None,
        "broker": broker or "ok",
        "database": database or "ok",
    }
    # They do not make a worker unready: good requests are served.
    if readiness.dead_letters is not None:
        state["dead_letters"] = readiness.dead_letters
    if readiness.events is not None:
        state["events"] = readiness.events
    if topology := "; ".join(filter(None, (readiness.topology, *readiness.vanished.values()))):
        state["topology"] = topology
    if readiness.policies is not None:
        state["policies"] = readiness.policies
    return state


async def _livez(_: web.Request) -> web.Response:
    return web.json_response({"alive": True})
