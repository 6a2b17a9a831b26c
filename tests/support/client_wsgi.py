"""A web application of the plainest kind, with clients that its modules make: for Gunicorn."""

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Any

from worker.client import FlowRunClient
from worker.client.sync import FlowRunClient as SyncClient

REQUEST = {"flow_id": "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"}
URL, QUEUE = os.environ["AMQP_URL"], os.environ["QUEUE"]
client = SyncClient(URL, queue=QUEUE, timeout=60)
async_client = FlowRunClient(URL, queue=QUEUE, timeout=60)
# Used before Gunicorn forks, if it preloads the application.
client.publish(REQUEST)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Publish a request: at ``/`` by the blocking client, at ``/many`` by its ``create_many``, at
    ``/async`` by the other one, in an event loop of its own.
    """
    match environ["PATH_INFO"]:
        case "/many":
            answer = [type(each.error).__name__ for each in client.create_many([REQUEST], timeout=1)]
        case "/async":
            answer = [asyncio.run(async_client.publish(REQUEST))]
        case _:
            answer = [client.publish(REQUEST)]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer[0].encode()]
