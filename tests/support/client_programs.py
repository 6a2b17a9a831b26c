"""Programs that use the client as its users do, in a process of their own.

``python -m tests.support.client_programs URL QUEUE NAME...`` runs some. Each prints the number of
its calls that published a message, and nothing to the standard error.
"""

import asyncio
import atexit
import gc
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.client import BrokerGone, ClientError, FlowRunClient, NoReply
from worker.client.sync import FlowRunClient as SyncClient

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
REQUEST = {"flow_id": FLOW_ID}
URL, QUEUE, *NAMES = sys.argv[1:]
# Long: no test depends on this machine's speed.
TIMEOUT = 60.0


async def publish(client: FlowRunClient) -> int:
    await client.publish(REQUEST)
    return 1


def loops() -> int:
    """A client of a module, in one event loop after the other, in several at once, and in one that
    is left open.
    """
    client = FlowRunClient(URL, queue=QUEUE, timeout=TIMEOUT)
    began = time.monotonic()
    count = sum(asyncio.run(publish(client)) for _ in range(5))
    assert time.monotonic() - began < 20, "a loop waited for the last one's connection"
    left_open = asyncio.new_event_loop()
    count += left_open.run_until_complete(publish(client))
    count += asyncio.run(publish(client))
    with ThreadPoolExecutor(8) as threads:
        count += sum(threads.map(lambda _: asyncio.run(publish(client)), range(8)))
    count += left_open.run_until_complete(publish(client))
    # As asyncio.run ends a loop; but this one goes on.
    left_open.run_until_complete(left_open.shutdown_asyncgens())
    count += left_open.run_until_complete(publish(client))
    left_open.run_until_complete(client.close())
    left_open.run_until_complete(left_open.shutdown_asyncgens())
    left_open.close()
    return count


def closing_in_another_loop() -> int:
    """A client that is closed in one loop ends its calls in another."""
    client = FlowRunClient(URL, queue=QUEUE, timeout=TIMEOUT)
    published = threading.Event()
    ended: list[BaseException] = []

    async def wait_for_a_reply() -> None:
        await client.publish(REQUEST)
        published.set()
        try:
            await client.create_flow_run(FLOW_ID)
        except BrokerGone as error:
            ended.append(error)

    waiting = threading.Thread(target=asyncio.run, args=(wait_for_a_reply(),))
    waiting.start()
    published.wait()
    time.sleep(0.3)
    asyncio.run(client.close())
    waiting.join()
    assert [str(error) for error in ended] == [
        "The client is closed. It may have been sent, and may still be served."
    ]
    return 2


def eager_tasks() -> int:
    """The task factory of Python 3.12 that runs a task at once until it waits."""

    if sys.version_info < (3, 12):
        return 0

    async def main() -> int:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with FlowRunClient(URL, queue=QUEUE, timeout=TIMEOUT) as client:
            count = sum(await asyncio.gather(*(publish(client) for _ in range(20))))
            outcomes = [each async for each in client.create_many([REQUEST] * 5, timeout=0.5)]
            assert [type(each.error).__name__ for each in outcomes] == ["NoReply"] * 5
        return count + len(outcomes)

    return asyncio.run(main())


def fork() -> int:
    """A child that uses its parent's client, after the parent's loop and within it."""
    client = FlowRunClient(URL, queue=QUEUE, timeout=TIMEOUT)

    def child() -> int:
        if (pid := os.fork()) == 0:
            code = 1
            with suppress(ClientError):
                asyncio.run(publish(client))
                code = 0
            os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        return 1

    async def parent() -> int:
        count = await publish(client) + child()
        return count + await publish(client)

    count = asyncio.run(parent()) + child()
    return count + asyncio.run(publish(client))


def threads() -> int:
    """One client in a hundred threads."""
    with SyncClient(URL, queue=QUEUE, timeout=TIMEOUT) as client:
        with ThreadPoolExecutor(100) as pool:
            ids = set(pool.map(lambda _: client.publish(REQUEST), range(200)))
        return len(ids)


def the_end() -> int:
    """Calls as the interpreter ends, and in the client's own thread: an answer or an error, but no
    wait that never ends.
    """
    client = SyncClient(URL, queue=QUEUE, timeout=TIMEOUT)
    print(client.publish(REQUEST) and 2, flush=True)
    atexit.register(lambda: client.publish(REQUEST))

    class Late:
        def __init__(self, reason: str) -> None:
            self._reason = reason

        def __del__(self) -> None:
            try:
                client.publish(REQUEST)
            except BrokerGone as error:
                if self._reason in str(error):
                    return
            os._exit(1)

    async def collect() -> None:
        garbage: Any = Late("the client's own thread")
        garbage.itself = garbage
        del garbage
        gc.collect()

    client._here().call(collect, TIMEOUT)
    sys.modules["late"] = Late("The interpreter is ending")  # type: ignore[assignment]
    return 0


def first_call_at_the_end() -> int:
    client = SyncClient(URL, queue=QUEUE, timeout=TIMEOUT)

    def late() -> None:
        count = 0
        with suppress(BrokerGone):  # some Pythons start no thread then
            count = bool(client.publish(REQUEST))
        print(int(count), flush=True)

    atexit.register(late)
    return 0


def no_thread() -> int:
    """The process has its maximum of threads, for a while."""
    with SyncClient(URL, queue=QUEUE, timeout=TIMEOUT) as client:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        threading.Thread.start = refuse  # type: ignore[method-assign]
        told = ""
        try:
            client.publish(REQUEST)
        except BrokerGone as error:
            told = str(error)
        assert "can't start new thread. It was not sent." in told
        threading.Thread.start = start  # type: ignore[method-assign]
        client.publish(REQUEST)
    return 1


def dropped() -> int:
    """Clients that are dropped without being closed: a warning each, and nothing is left."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def drop_blocking() -> None:
        SyncClient(URL, queue=QUEUE, timeout=TIMEOUT).publish(REQUEST)

    async def drop() -> None:
        await publish(FlowRunClient(URL, queue=QUEUE, timeout=TIMEOUT))
        gc.collect()
        while descriptors() > before + 4:  # those of the loop itself
            await asyncio.sleep(0.01)

    before = descriptors()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(10):
            drop_blocking()
        gc.collect()
        asyncio.run(drop())
        FlowRunClient(URL, queue=QUEUE)  # it has never connected
    assert [str(each.message)[:29] for each in warned] == [
        *["unclosed <worker.client.sync.Fl"[:29]] * 10,
        "unclosed <worker.client.client."[:29],
    ], [str(each.message) for each in warned]
    while threading.active_count() > 1 or descriptors() > before:
        time.sleep(0.01)
    return 11


def gevent() -> int:
    """Greenlets instead of threads, patched after the client was imported."""
    from gevent import monkey

    monkey.patch_all()
    import gevent as library

    running = True
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while running:
            library.sleep(0.01)
            ticks += 1

    ticking = library.spawn(tick)
    clients = [SyncClient(URL, queue=QUEUE, timeout=TIMEOUT) for _ in range(3)]
    calls = [library.spawn(clients[n % 3].publish, REQUEST) for n in range(30)]
    library.joinall(calls, raise_error=True)
    assert len({call.value for call in calls}) == 30
    outcomes = list(clients[0].create_many([REQUEST] * 3, timeout=0.5))
    assert [type(each.error).__name__ for each in outcomes] == ["NoReply"] * 3
    assert ticks > 10, "the other greenlets stood still"
    # Another loop of the process, in the same thread.
    async_client = FlowRunClient(URL, queue=QUEUE, timeout=TIMEOUT)
    count = asyncio.run(publish(async_client))
    for client in clients:
        client.close()
    running = False
    ticking.join()
    return len(calls) + len(outcomes) + count


def async_to_sync() -> int:
    """Django's: a new event loop for each call of a synchronous view, and for each thread."""
    from django.conf import settings

    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="-")
    import django
    from asgiref.sync import async_to_sync
    from django.http import HttpRequest, HttpResponse
    from django.test import Client
    from django.urls import path

    django.setup()
    client = FlowRunClient(URL, queue=QUEUE, timeout=TIMEOUT)

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(async_to_sync(client.publish)(REQUEST))

    async def async_view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(await client.publish(REQUEST))

    globals()["urlpatterns"] = [path("", view), path("async", async_view)]

    def get(page: str) -> int:
        return int(Client().get(page).status_code == 200)

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(get, ["/"] * 8)) + get("/") + get("/async")


def fastapi() -> int:
    """FastAPI's test client without ``with`` has a new event loop for each request."""
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager

    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    client = FlowRunClient(URL, queue=QUEUE, timeout=TIMEOUT)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/")
    async def create() -> str:
        return await client.publish(REQUEST)

    test_client = TestClient(app)
    count = sum(test_client.post("/").status_code == 200 for _ in range(3))
    with TestClient(app) as test_client:
        count += sum(test_client.post("/").status_code == 200 for _ in range(3))
    return count


def page() -> int:
    """The web applications on the page of the client. There is no worker, so no reply comes."""
    from fastapi.testclient import TestClient

    text = (Path(__file__).parents[2] / "deploy" / "docs" / "python.md").read_text()
    web_application, blocking = re.findall(r"```python\n(.*?)```", text, re.S)[1:3]
    url = '"amqp://guest:guest@localhost:5672/", timeout=5'

    def run(block: str) -> dict[str, Any]:
        assert url in block
        names: dict[str, Any] = {}
        exec(block.replace(url, f'"{URL}", queue="{QUEUE}", timeout=0.5'), names)
        return names

    with TestClient(run(web_application)["app"]) as test_client:
        answer = test_client.post("/orders/4711")
        assert answer.status_code == 503
        assert "The broker has it" in answer.json()["detail"]
    names = run(blocking)
    with suppress(NoReply), names["client"]:
        names["create"]("4712")
    return 2


def main() -> None:
    programs: dict[str, Callable[[], int]] = {
        each.__name__: each
        for each in (
            *(loops, closing_in_another_loop, eager_tasks, fork, threads, the_end),
            *(first_call_at_the_end, no_thread, dropped, gevent, async_to_sync, fastapi, page),
        )
    }
    for name in NAMES:
        if count := programs[name]():
            print(count, flush=True)


if __name__ == "__main__":
    main()
