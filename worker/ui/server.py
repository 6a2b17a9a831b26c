"""Serves the pages until SIGTERM or Ctrl-C."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from worker import __version__
from worker.observability.redaction import redact
from worker.settings import Settings
from worker.ui.access import LOOPBACK, Access
from worker.ui.jobs import Jobs
from worker.ui.letter_pages import LetterPages
from worker.ui.letters import Letters
from worker.ui.pages import Pages
from worker.ui.templating import Frame
from worker.ui.watching import Watching

log = structlog.get_logger(__name__)

# aiohttp logs a traceback for bytes that are not HTTP, and anyone may send those.
_silent = logging.Logger("aiohttp.server", logging.CRITICAL + 1)
# In bytes. A form encodes a byte as up to three.
_FORM = 64 * 1024


async def serve(
    settings: Settings,
    urls: Sequence[str],
    *,
    host: str,
    port: int,
    names: Sequence[str],
    interval: float,
    on_open: Callable[[str], None],
) -> None:
    """Serve the pages.

    Args:
        urls: the workers' side ports.
        host, port: to listen at. 0 is any free port.
        names: host names to be reached by, besides those of this machine and ``host``.
        interval: seconds between two reads of the workers.
        on_open: is called with the URL and its token.

    Raises:
        OSError: the port can't be opened.
    """
    access = Access((*names, host))
    watching = Watching(settings, urls, interval)
    jobs = Jobs()
    letters = Letters(settings)
    frame = Frame(
        {
            "queue": settings.queue,
            "broker": redact(settings.amqp_url),
            "version": __version__,
            "form_token": access.form_token,
        }
    )
    app = web.Application(
        middlewares=[access.check, _faults(frame)],
        client_max_size=3 * settings.max_body_bytes + _FORM,
    )
    app.add_routes(LetterPages(letters, frame, watching, jobs).routes())
    app.add_routes(Pages(settings, frame, watching, jobs).routes())
    runner = web.AppRunner(app, access_log=None, logger=_silent, shutdown_timeout=1.0)
    await runner.setup()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    watch = asyncio.create_task(watching.run())
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        on_open(f"http://{_reached_by(host)}:{_port(runner)}/?token={access.token}")
        await stopping.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        await jobs.close()
        await runner.cleanup()
        letters.close()


def _faults(frame: Frame) -> web.middleware:  # type: ignore[valid-type]
    """Answers errors as pages."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPRedirection:
            raise
        except web.HTTPException as refused:
            why = refused.text if refused.status == 400 else refused.reason
            return frame.page("fault.html", refused.status, here="", why=why or refused.reason)
        except Exception:  # the edge: a failing page harms no other
            log.exception("page_failed", path=request.path)
            return frame.page("fault.html", 500, here="", why="This page failed. The log has the reason.")

    return answer


def _reached_by(host: str) -> str:
    """The name in the URL of a listening address."""
    try:
        info = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)[0]
    except OSError:
        return host
    if str(info[4][0]) in ("0.0.0.0", "::"):  # noqa: S104  # all addresses
        return LOOPBACK[0]
    return f"[{host}]" if ":" in host else host


def _port(runner: web.AppRunner) -> int:
    port: int = runner.addresses[0][1]
    return port
