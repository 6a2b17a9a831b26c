"""``ui`` in a real Chromium: what a user sees and does, with the mouse and with the keyboard."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import StartWorker
from tests.support.browser import TIMEOUT, browser, chromium
from tests.support.database import fetch_runs
from tests.support.producer import Producer
from tests.support.proxy import Proxy
from tests.support.ui_process import UiProcess

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium here: tests/support/servers.sh chromium installs it on Debian"
)

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
SCRIPT = "<img src=x onerror=alert(1)><script>alert('x')</script>"
SIZES = ({"width": 1280, "height": 800}, {"width": 390, "height": 844})


@asynccontextmanager
async def page_of(ui: UiProcess, chrome: Any, **options: Any) -> AsyncIterator[Any]:
    """A page with the token, on which nothing may go wrong."""
    context = await chrome.new_context(**options)
    page = await context.new_page()
    page.set_default_timeout(TIMEOUT)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"{message.text} {message.location}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
    await page.goto(ui.url)
    await page.wait_for_selector("h1:has-text('Overview')")
    assert page.url == f"{ui.origin}/"
    yield page
    assert not wrong
    await context.close()


@pytest.fixture
def started(
    start_worker: StartWorker, sqlite_url: str, amqp_url: str, queue: str, tmp_path: Path
) -> UiProcess:
    worker = start_worker(sqlite_url)
    environment = {"WORKER_AMQP_URL": amqp_url, "WORKER_QUEUE": queue, "WORKER_DATABASE_URL": sqlite_url}
    arguments = ("--worker", worker.http, "--interval", "0.5")
    return UiProcess(tmp_path / "ui.log", environment, *arguments)


@pytest.fixture
def ui(started: UiProcess) -> Any:
    yield started
    assert started.terminate() == 0, started.output


async def test_charts_move_while_a_load_runs(ui: UiProcess, producer: Producer) -> None:
    async def load() -> None:
        number = 0
        while True:
            await producer.request({"flow_id": FLOW_ID})
            number += 1

    loading = asyncio.create_task(load())
    try:
        async with browser() as chrome, page_of(ui, chrome) as page:
            line = page.locator("[data-lines^='created'] path.line-0")
            drawn = set()
            async with asyncio.timeout(180):
                while len(drawn) < 3 or await page.text_content("[data-of=created]") in ("–", "0/s"):  # noqa: RUF001
                    drawn.add(await line.get_attribute("d") if await line.count() else None)
                    await asyncio.sleep(0.3)
            await page.get_by_label("1 hour").check()
            await page.wait_for_selector("text=60 min ago", state="attached")
            # Nothing but this origin is loaded.
            loaded = await page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
            assert loaded
            assert all(each.startswith(ui.origin) for each in loaded)
    finally:
        loading.cancel()


async def test_outages_are_shown_and_the_page_goes_on(
    start_worker: StartWorker, sqlite_url: str, amqp_url: str, queue: str, tmp_path: Path
) -> None:
    port = urlsplit(amqp_url).port
    assert port is not None
    async with Proxy([port]) as proxy, browser() as chrome:
        url = amqp_url.replace(f":{port}", f":{proxy.port}")
        worker = await asyncio.to_thread(start_worker, sqlite_url, amqp_url=url)
        environment = {"WORKER_AMQP_URL": url, "WORKER_QUEUE": queue, "WORKER_DATABASE_URL": sqlite_url}
        arguments = ("--worker", worker.http, "--interval", "0.5")
        ui = await asyncio.to_thread(UiProcess, tmp_path / "ui.log", environment, *arguments)
        try:
            async with page_of(ui, chrome) as page:
                faults = page.locator("#faults")
                well = page.locator("main:has(#workers .good):not(:has(#faults p)):not(:has(#workers .bad))")
                await well.wait_for()
                file = tmp_path / "flow_runs.db"
                away = file.rename(tmp_path / "moved.db")
                await faults.get_by_text(f"{worker.http}: database").wait_for()
                away.rename(file)
                await well.wait_for()
                proxy.go_away()
                await faults.get_by_text("No answer from the broker").wait_for()
                await faults.get_by_text(f"{worker.http}: broker").wait_for()
                assert not any(each.isdigit() for each in await page.text_content("[data-of=ready]"))
                proxy.come_back()
                await well.wait_for()
        finally:
            assert ui.terminate() == 0, ui.output


async def test_letters_of_each_cause_are_found_explained_edited_and_served(
    ui: UiProcess, producer: Producer, sqlite_url: str
) -> None:
    bodies: list[tuple[str | dict[str, Any], dict[str, Any]]] = [
        ({"flow_id": "no uuid", "name": SCRIPT}, {}),
        ({"name": f"1 {SCRIPT}"}, {}),
        ({"flow_id": FLOW_ID, SCRIPT: 1}, {}),
        ('{"flow_id": ', {}),
        ({"flow_id": FLOW_ID, "name": "gzip"}, {"content_encoding": "gzip"}),
        ({"flow_id": FLOW_ID, "deployment_id": FLOW_ID}, {"type": "create_flow_run_from_deployment"}),
    ]
    for body, properties in bodies:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        reply = await producer.request(raw, message_id=f"id {SCRIPT} {raw[:30]!r}", **properties)
        assert reply.status >= 400
    async with browser() as chrome, page_of(ui, chrome) as page:
        await page.click("text=Dead letters")
        await page.click("text=Look at them")
        await page.wait_for_selector(".causes")
        causes = await page.locator(".causes li").count()
        assert causes == len(bodies)
        # The field that is missing is marked, added and served.
        await page.click(".cause:has-text('Field required')")
        await page.click("tbody th a")
        assert await page.text_content(".wrong.missing mark") == '  "flow_id": '
        form = page.get_by_label("Body. If you change it")
        content = json.loads(await form.input_value())
        assert content == {"name": f"1 {SCRIPT}"}
        await form.fill(json.dumps({**content, "flow_id": 7}))
        await page.click("text=Send again")
        assert "UUID" in await page.text_content("[role=alert]")
        await form.fill(json.dumps({**content, "flow_id": FLOW_ID}))
        await page.click("text=Send again")
        await page.wait_for_selector("text=1 letter served")
        # One that is sent as it is comes back.
        await page.click("a:text-is('Dead letters') >> nth=-1")
        await page.click(".cause:has-text('valid UUID')")
        await page.click("tbody th a")
        await page.click("text=Send again")
        await page.wait_for_selector("text=1 letter refused again.")
        # All others are chosen by their boxes, with the keyboard, and deleted.
        await page.goto(f"{ui.origin}/letters")
        await page.click("text=Look again")
        await page.wait_for_selector(f"text={len(bodies) - 1} letters as of")
        await page.goto(f"{ui.origin}/letters/list")
        for box in await page.get_by_role("checkbox").all():
            await box.focus()
            await page.keyboard.press("Space")
        await page.get_by_role("button", name="Delete…").focus()
        await page.keyboard.press("Enter")
        await page.click(f"button:has-text('Delete: {len(bodies) - 1}')")
        await page.wait_for_selector(f"text={len(bodies) - 1} letters deleted.")
    (run,) = await fetch_runs(sqlite_url)
    assert run["name"] == f"1 {SCRIPT}"
    assert await producer.depth(f"{producer.queue}.dead") == 0


async def test_pages_fit_and_are_used_with_the_keyboard(ui: UiProcess, producer: Producer) -> None:
    assert (await producer.request({"flow_id": "x" * 300})).status == 422
    async with browser() as chrome:
        for size in SIZES:
            for scheme in ("light", "dark"):
                async with page_of(ui, chrome, viewport=size, color_scheme=scheme) as page:
                    await page.goto(f"{ui.origin}/letters")
                    await page.get_by_role("button", name="Look").click()
                    await page.wait_for_selector(".causes")
                    await page.click(".cause")
                    letter = await page.get_attribute("tbody th a", "href")
                    for path in ("/", "/letters", "/letters/list", letter, "/send", "/doctor"):
                        await page.goto(f"{ui.origin}{path}")
                        await page.wait_for_selector("h1")
                        width = await page.evaluate("document.documentElement.scrollWidth")
                        assert width <= size["width"], path
                        await page.keyboard.press("Tab")
                        assert await page.evaluate("document.activeElement.textContent") == "Skip to content"
                        await page.keyboard.press("Enter")
                        # All that a form has is named.
                        unnamed = await page.evaluate(UNNAMED)
                        assert not unnamed, (path, unnamed)


# Fields without a label.
UNNAMED = """[...document.querySelectorAll("input:not([type=hidden]), textarea, select")]
  .filter((each) => !each.labels.length && !each.ariaLabel).map((each) => each.outerHTML)"""


async def test_another_page_gets_nothing(ui: UiProcess) -> None:
    """A page of another origin, such as a server of another user on another port, tries."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
        )
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    other = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, browser() as chrome:
        context = await chrome.new_context()
        page = await context.new_page()
        page.set_default_timeout(TIMEOUT)
        await page.goto(ui.url)
        await page.wait_for_selector("h1")
        await page.goto(other)
        tried = await page.evaluate(ATTEMPTS, ui.origin)
        assert set(tried.values()) <= {"refused"}, tried
        await context.close()


# What a page of another origin may try. Each attempt ends with "refused", or with what it has got.
ATTEMPTS = """async (target) => {
  const results = {};
  for (const path of ["/live", "/", "/letters"]) {
    for (const credentials of ["include", "omit"]) {
      results[path + credentials] = await fetch(target + path, { credentials })
        .then((answer) => answer.text(), () => "refused");
    }
  }
  const post = { method: "POST", mode: "no-cors", credentials: "include" };
  results.post = await fetch(`${target}/doctor`, post).then((answer) => answer.type, () => "refused");
  results.script = await new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = `${target}/static/charts.js`;
    script.onload = () => resolve("loaded");
    script.onerror = () => resolve("refused");
    document.head.append(script);
  });
  results.frame = await new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.src = `${target}/`;
    frame.onload = () => {
      try {
        resolve(frame.contentDocument?.body.textContent ? "read" : "refused");
      } catch {
        resolve("refused");
      }
    };
    document.body.append(frame);
  });
  return results;
}"""
