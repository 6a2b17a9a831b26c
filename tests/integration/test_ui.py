"""``ui``: the pages, with a worker, a broker and a client that has the token, or has not."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import StartWorker
from tests.support.database import fetch_runs
from tests.support.producer import Producer, Reply
from tests.support.proxy import Proxy
from tests.support.ui_process import UiClient, UiProcess, without_markup
from worker import __version__

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
SCRIPT = "<script>alert('x')</script>"
PATHS = ("/", "/live", "/letters", "/letters/list", "/send", "/doctor", "/static/app.js", "/nowhere")

StartUi = Callable[..., UiProcess]


@pytest.fixture
def start_ui(amqp_url: str, queue: str, tmp_path: Path) -> Iterator[StartUi]:
    started: list[UiProcess] = []

    def start(*arguments: str, **settings: Any) -> UiProcess:
        environment = {
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_QUEUE": queue,
            "WORKER_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/flow_runs.db",
            **{f"WORKER_{name.upper()}": str(value) for name, value in settings.items()},
        }
        ui = UiProcess(tmp_path / f"ui-{len(started)}.log", environment, *arguments)
        started.append(ui)
        return ui

    yield start
    for ui in started:
        if ui.process.poll() is None:
            assert ui.terminate() == 0, ui.output


def live(http: UiClient) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/live").json()
    return found


async def until(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.2)


def letter_ids(http: UiClient) -> Sequence[str]:
    return re.findall(r'name="id" value="([0-9a-f]{12})"', http.get("/letters/list").text)


def test_without_the_token_there_is_nothing(start_ui: StartUi) -> None:
    ui = start_ui()
    with httpx.Client(base_url=ui.origin) as http:
        for path in PATHS:
            assert http.get(path).status_code == 401, path
            assert http.get(path, params={"token": "wrong"}).status_code == 401, path
            assert http.post(path, headers={"Origin": ui.origin}).status_code == 401, path
        for token in ("", "ä", ui.url.partition("token=")[2][:-1]):
            assert http.get("/", params={"token": token}).status_code == 401
        # A token elsewhere than in the URL that is printed is none.
        token = ui.url.partition("token=")[2]
        assert http.get("/live", params={"token": token}).status_code == 401
        assert http.get("/", headers={"Cookie": f"token={token}"}).status_code == 401
        assert not http.cookies
        opened = http.get(ui.url)
        assert opened.status_code == 200
        (cookie,) = opened.headers.get_list("set-cookie")
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert token not in cookie
        assert http.get("/").status_code == 200
    assert token not in ui.output.replace(ui.url, "")


def test_other_names_and_other_pages_get_nothing(start_ui: StartUi) -> None:
    ui = start_ui("--allow-host", "operator.example.org")
    port = urlsplit(ui.origin).port
    with ui.client() as http:
        del http.headers["Origin"]
        for host in (
            "localhost",
            f"localhost:{port}",
            f"[::1]:{port}",
            "operator.example.org",
            "127.0.0.1:9000",
        ):
            assert http.get("/", headers={"Host": host}).status_code == 200, host
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evil.example#@localhost",
            "evil@localhost",
            "",
        ):
            for path in PATHS:
                assert http.get(path, headers={"Host": host}).status_code == 403, host
            # Without the cookie, too: the answer is the same whether there is one.
            assert httpx.get(ui.url, headers={"Host": host}).status_code == 403
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{port}"):
            for path in PATHS:
                assert http.get(path, headers={"Origin": origin}).status_code == 403, origin
        own = {"Origin": ui.origin}
        assert http.get("/", headers=own).status_code == 200
        for site in ("cross-site", "same-site"):
            assert http.get("/live", headers={"Sec-Fetch-Site": site}).status_code == 403
        form = {"form_token": "wrong", "body": "{}"}
        assert http.post("/doctor", headers=own).status_code == 403
        assert http.post("/doctor", headers=own, data=form).status_code == 403
        token = re.search(r'name="form_token" value="([^"]+)"', http.get("/doctor").text)
        assert token is not None
        form["form_token"] = token[1]
        assert http.post("/doctor", data=form).status_code == 403
        assert http.post("/doctor", headers={"Origin": "http://evil.example"}, data=form).status_code == 403
        assert http.post("/doctor", headers=own, data=form).status_code == 303
        assert http.put("/doctor", headers=own, data=form).status_code == 405


def test_each_answer_forbids_what_the_pages_do_not_need(start_ui: StartUi) -> None:
    ui = start_ui()
    with ui.client() as http:
        answers = [http.get(path) for path in PATHS]
        answers += [httpx.get(ui.origin), httpx.get(ui.url), httpx.get(ui.url, headers={"Host": "evil"})]
    assert {200, 401, 403, 404} == {each.status_code for each in answers}
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?! src=\"/static/)|\son\w+=|\sstyle=|https?://(?!127)", answer.text)


async def test_a_letter_is_found_explained_edited_sent_again_and_served(
    start_worker: StartWorker, start_ui: StartUi, producer: Producer, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url)
    bodies: list[dict[str, Any]] = [
        {"flow_id": f"no uuid {SCRIPT}", "idempotency_key": f"key {SCRIPT}"},
        {"flow_id": FLOW_ID, SCRIPT: 1},
        {"parameters": {"customer": "Zoë \u202e"}},
    ]
    for number, body in enumerate(bodies):
        reply = await producer.request(body, message_id=f"m-{number} {SCRIPT}", headers={SCRIPT: SCRIPT})
        assert reply.status == 422
    ui = start_ui("--worker", worker.http)

    def operate() -> None:
        with ui.client() as http:
            assert "3 requests wait" in wait_for(http, "/letters", "3 requests wait")
            assert "Nobody has looked yet" in http.text("/letters/list")
            assert http.submit("/letters", "/letters/look").status_code == 200
            causes = http.text("/letters")
            assert "422 body.flow_id: Field required" in causes
            assert "3 letters as of" in causes
            ids = letter_ids(http)
            assert len(ids) == 3
            pages = {path: http.get(f"/letters/{path}") for path in ids}
            for page in pages.values():
                assert page.status_code == 200
                assert "<script>alert" not in page.text
                assert SCRIPT in without_markup(page.text)  # as a header
            missing, extra, wrong = (pages[each].text for each in ids)
            (note,) = re.findall(r'<span class="wrong missing"><mark>(.*?)</mark>', missing)
            assert "flow_id" in note
            assert "\\u202e" in missing
            assert "\u202e" not in missing
            (line,) = re.findall(r'<span class="wrong"><mark>(.*?)</mark>', wrong)
            assert line.strip().startswith("&#34;flow_id&#34;: &#34;no uuid &lt;script&gt;")
            assert "Extra inputs are not permitted" in re.findall(r'class="note">(.*?)<', extra)
            # What is still wrong is not sent.
            action = f"/letters/{ids[0]}/replay"
            answer = http.submit(f"/letters/{ids[0]}", action, body='{"flow_id": 1}')
            assert "Nothing was sent." in answer.text
            fixed = json.dumps({"flow_id": FLOW_ID, "name": "mended"})
            answer = http.submit(f"/letters/{ids[0]}", action, body=fixed)
            assert "1 letter served" in answer.text, answer.text
            assert letter_ids(http) == ids[1:]
            # One that is sent as it is is refused again.
            answer = http.submit("/letters", "/letters/act", action="replay", id=ids[1])
            assert "1 letter refused again." in answer.text
            http.submit("/letters", "/letters/look")
            question = http.text("/letters/act?action=purge&all=1")
            assert "Delete: 2 letters" in question
            answer = http.submit("/letters/act?action=purge&all=1", "/letters/act", action="purge", all="1")
            assert "2 letters deleted." in answer.text
            assert "There are none." in http.text("/letters")

    await asyncio.to_thread(operate)
    assert [each["name"] for each in await fetch_runs(sqlite_url)] == ["mended"]
    assert await producer.depth(f"{producer.queue}.dead") == 0


def wait_for(http: UiClient, path: str, text: str) -> str:
    """A page, once it has a text."""
    found = ""

    def has() -> bool:
        nonlocal found
        found = http.text(path)
        return text in found

    asyncio.run(until(has))
    return found


async def test_only_a_button_looks_at_letters(
    start_worker: StartWorker, start_ui: StartUi, producer: Producer, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url)
    assert (await producer.request({})).status == 422
    ui = start_ui("--worker", worker.http)

    def visit(look: bool) -> None:
        with ui.client() as http:
            for path in ("/", "/letters", "/letters/list", "/letters/0123456789ab", "/live", "/doctor"):
                http.get(path)
            if look:
                http.submit("/letters", "/letters/look")
                for path in ("/letters", "/letters/list", f"/letters/{letter_ids(http)[0]}"):
                    http.get(path)

    await asyncio.to_thread(visit, False)
    assert not (await headers_of_the_letter(producer)).get("x-delivery-count")
    await asyncio.to_thread(visit, True)
    assert (await headers_of_the_letter(producer))["x-delivery-count"] > 0


async def headers_of_the_letter(producer: Producer) -> dict[str, Any]:
    """The headers of the only letter, which is put back."""
    async with asyncio.timeout(180):
        while True:
            queue = await producer.channel.get_queue(f"{producer.queue}.dead")
            if (message := await queue.get(fail=False)) is not None:
                await message.reject(requeue=True)
                return Reply.of(message).headers
            await asyncio.sleep(0.05)


async def test_a_broker_that_is_away_is_told_and_the_pages_go_on(
    start_worker: StartWorker, start_ui: StartUi, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    parts = urlsplit(amqp_url)
    assert parts.port is not None
    async with Proxy([parts.port]) as proxy:
        url = amqp_url.replace(f":{parts.port}", f":{proxy.port}")
        worker = await asyncio.to_thread(start_worker, sqlite_url, amqp_url=url)
        workers = ("--worker", worker.http, "--worker", "http://127.0.0.1:9")
        ui = await asyncio.to_thread(start_ui, *workers, amqp_url=url)
        with ui.client() as http:

            def faults() -> str:
                return without_markup(live(http)["shown"]["faults"])

            def both_serve() -> bool:
                found = faults()
                return "No answer from http://127.0.0.1:9" in found and "broker" not in found

            await until(both_serve)
            proxy.go_away()
            await until(
                lambda: "No answer from the broker" in faults() and f"{worker.http}: broker" in faults()
            )
            page = await asyncio.to_thread(http.text, "/")
            assert "No answer from the broker" in page
            failed = await asyncio.to_thread(http.submit, "/letters", "/letters/look")
            assert "It failed." in failed.text
            examined = await asyncio.to_thread(http.submit, "/doctor", "/doctor")
            assert "problem" in examined.text
            proxy.come_back()
            await until(both_serve)
            # One that falls silent is told as well, and the workers are still read.
            proxy.silence()
            await until(lambda: "No answer within 5 seconds" in faults())
            proxy.speak()
            await until(both_serve)
            await asyncio.to_thread(http.submit, "/letters", "/letters/look")
            assert "There are none." in await asyncio.to_thread(http.text, "/letters")


async def test_a_database_that_is_away_is_told_until_it_is_back(
    start_worker: StartWorker, start_ui: StartUi, producer: Producer, sqlite_url: str, tmp_path: Path
) -> None:
    worker = start_worker(sqlite_url)
    ui = start_ui("--worker", worker.http, "--interval", "0.5")
    file = tmp_path / "flow_runs.db"
    with ui.client() as http:
        await until(lambda: live(http)["last"] > 0 and not live(http)["shown"]["faults"])
        away = file.rename(tmp_path / "moved.db")
        await producer.publish({"flow_id": FLOW_ID})
        await until(lambda: f"{worker.http}: database" in without_markup(live(http)["shown"]["faults"]))
        shown = without_markup(live(http)["shown"]["workers"])
        assert f"{worker.http} {__version__} up away" in shown
        away.rename(file)
        await until(lambda: not live(http)["shown"]["faults"])
        await until(lambda: bool(live(http)["points"]))


async def test_it_shows_workers_their_rates_and_settings_that_differ(
    start_worker: StartWorker, start_ui: StartUi, producer: Producer, sqlite_url: str
) -> None:
    workers = [start_worker(sqlite_url, prefetch=each) for each in (10, 20)]
    ui = start_ui(*(part for each in workers for part in ("--worker", each.http)), "--interval", "0.5")
    with ui.client() as http:
        for number in range(10_000):
            await producer.request({"flow_id": FLOW_ID, "idempotency_key": str(number % 7)})
            if number % 20 == 0:
                found = await asyncio.to_thread(live, http)
                places = [found["series"].index(name) + 1 for name in ("created", "existing", "create_p99")]
                if any(all(point[place] for place in places[1:]) for point in found["points"]):
                    break
        shown = without_markup(found["shown"]["workers"])
        assert "WORKER_PREFETCH" in shown
        assert f"10 {workers[0].http}" in shown
        assert f"20 {workers[1].http}" in shown
        assert "WORKER_QUEUE" not in shown
        assert len(found["points"]) == found["last"]
        assert len(http.get(f"/live?since={found['last']}").json()["points"]) < found["last"]


async def test_a_request_is_sent_and_its_reply_and_states_are_shown(
    start_worker: StartWorker, start_ui: StartUi, producer: Producer, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url, states="all")
    ui = start_ui("--worker", worker.http, states="all")
    body = {"flow_id": FLOW_ID, "name": SCRIPT, "state": {"type": "COMPLETED"}, "idempotency_key": "k"}

    def send(body: str) -> str:
        with ui.client() as http:
            return http.submit("/send", "/send", body=body, wait="on").text

    for expected in ("201 created.", "200 existing"):
        page = await asyncio.to_thread(send, json.dumps(body))
        assert expected in page
        assert "&lt;script&gt;" in page
        assert "<script>alert" not in page
    refused = without_markup(await asyncio.to_thread(send, "{"))
    assert "422: body.1: JSON decode error" in refused
    assert [run["name"] for run in await fetch_runs(sqlite_url)] == [SCRIPT]
