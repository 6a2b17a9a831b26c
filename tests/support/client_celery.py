"""A Celery application with clients that its module makes. As a program it sends tasks."""

import asyncio
import os

from celery import Celery

from worker.client import FlowRunClient
from worker.client.sync import FlowRunClient as SyncClient

REQUEST = {"flow_id": "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"}
URL, QUEUE = os.environ["AMQP_URL"], os.environ["QUEUE"]
app = Celery("tests.support.client_celery", broker=URL)
app.conf.task_default_queue = f"{QUEUE}.celery"
client = SyncClient(URL, queue=QUEUE, timeout=60)
async_client = FlowRunClient(URL, queue=QUEUE, timeout=60)
# Used before Celery forks.
client.publish(REQUEST)


@app.task(name="create")
def create() -> None:
    client.publish(REQUEST)
    asyncio.run(async_client.publish(REQUEST))


if __name__ == "__main__":
    for _ in range(4):
        app.send_task("create")
