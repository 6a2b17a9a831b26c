"""``python -m tests.support.ui_pictures FOLDER``: takes the pictures of the pages of
``flow-run-worker ui``, with two workers under a load and some dead letters, on temporary servers.
Needs Chromium. With ``--all``: of each page, light and dark, wide and narrow.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.browser import TIMEOUT, browser
from tests.support.rabbitmq import RabbitMQ
from tests.support.requests import FLOW_ID
from tests.support.ui_process import UiProcess
from tests.support.worker_process import WorkerProcess
from worker.client import FlowRunClient

QUEUE = "flow-runs.create"
# The lowest and the highest rate in requests a second, and the seconds from one to the other.
LEAST, MOST, WAVE = 40, 240, 25
# The charts show the load of this many seconds.
SECONDS = 60
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Few enough for a small file, without a visible change.
COLOURS = 128


async def requests() -> AsyncIterator[dict[str, Any]]:
    """Endless requests. Some are refused, for several reasons."""
    number = 0
    while True:
        key = number - 1 if number % 20 == 19 else number
        order = {"order": number, "customer": "Zoë", "items": ["A-17", "B-4"]}
        body: dict[str, Any] = {
            "flow_id": FLOW_ID,
            "name": f"order-{number}",
            "idempotency_key": f"order-{key}",
            "parameters": order,
        }
        wrong: dict[int, dict[str, Any]] = {
            50: {"flow_id": "invoice"},
            70: {"tags": "nightly"},
            90: {"parameter": order},
            91: {"flow_id": None, "deployment_id": FLOW_ID},
        }
        yield {**body, **wrong.get(number % 200, {})}
        number += 1
        phase = abs(number % (2 * WAVE * LEAST) - WAVE * LEAST) / (WAVE * LEAST)
        await asyncio.sleep(1 / (LEAST + (MOST - LEAST) * phase))


async def take(ui: UiProcess, amqp_url: str, folder: Path, every: bool) -> None:
    """Have requests sent, and take the pictures."""

    async def send() -> None:
        async with FlowRunClient(amqp_url, queue=QUEUE) as client:
            async for _ in client.create_many(requests(), check=False):
                pass

    sending = asyncio.create_task(send())
    try:
        await asyncio.sleep(SECONDS)
        async with browser() as chrome:
            for size in (WIDE, NARROW) if every else (WIDE,):
                for scheme in ("light", "dark") if every else ("light",):
                    context = await chrome.new_context(viewport=size, color_scheme=scheme)
                    page = await context.new_page()
                    page.set_default_timeout(TIMEOUT)
                    suffix = f"-{size['width']}-{scheme}" if every else ""
                    await visit(page, ui, folder, suffix, every)
                    await context.close()
    finally:
        sending.cancel()


async def visit(page: Any, ui: UiProcess, folder: Path, suffix: str, every: bool) -> None:
    """Take a picture of each page."""

    async def shoot(name: str, wanted: bool = every) -> None:
        if wanted:
            file = folder / f"{name}{suffix}.png"
            await page.screenshot(path=file, full_page=True)
            shrink(file)

    await page.goto(ui.url)
    await page.wait_for_selector("#charts path", state="attached")
    await asyncio.sleep(3)
    await shoot("ui", True)
    await page.goto(f"{ui.origin}/letters")
    await shoot("ui-before-a-look")
    await page.get_by_role("button", name="Look").click()
    await page.wait_for_selector(".causes")
    await shoot("ui-causes")
    await page.click(".cause:has-text('valid UUID')")
    await shoot("ui-list")
    await page.click("tbody th a")
    await shoot("ui-letter", True)
    await page.click("text=Delete…")
    await shoot("ui-delete")
    await page.goto(f"{ui.origin}/send")
    await shoot("ui-send")
    await page.get_by_role("button", name="Send").click()
    await page.wait_for_selector("pre")
    await shoot("ui-sent")
    await page.goto(f"{ui.origin}/doctor")
    await page.get_by_role("button", name="Examine").click()
    await page.wait_for_selector("text=Examined")
    await shoot("ui-doctor")


def shrink(file: Path) -> None:
    """Make a picture's file smaller."""
    with Image.open(file) as taken:
        taken.convert("RGB").quantize(COLOURS).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size:,} bytes")


def main(folder: Path, every: bool) -> None:
    """Start the servers, and take the pictures."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(RabbitMQ())
        environment = {
            "WORKER_AMQP_URL": broker.url,
            "WORKER_DATABASE_URL": f"sqlite+aiosqlite:///{logs}/flow_runs.db",
            "WORKER_QUEUE": QUEUE,
            "WORKER_HTTP_PORT": "0",
            "WORKER_STATES": "all",
        }
        workers = []
        for number in range(2):
            differing = {"WORKER_PREFETCH": str(1000 + 250 * number)}
            worker = WorkerProcess(logs / f"worker-{number}.log", {**environment, **differing})
            stack.callback(worker.kill)
            worker.wait_until_logged("serving")
            workers += ["--worker", worker.http]
        ui = UiProcess(logs / "ui.log", environment, *workers, "--interval", "1")
        stack.callback(ui.kill)
        asyncio.run(take(ui, broker.url, folder, every))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--all" in sys.argv)
