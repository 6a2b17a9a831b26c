"""``python -m tests.conformance.picture FILE.png``: takes a picture of a run in a Prefect server's
own pages. A message from Node.js started the run by the name of a deployment, and a process worker
executed it. Needs Node.js and Chromium.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from PIL import Image

from tests.conformance.prefect_server import PrefectServer
from tests.conformance.shared import Both, deploy_greeting, start_process_worker
from tests.support.node import NodeProducer
from tests.support.producer import Producer
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

# Size of the picture in pixels, and milliseconds of the page's own time to load.
SIZE = "1200,780"
PAGE_MILLISECONDS = 20_000
# Few enough for a small file, without a visible change.
COLOURS = 64
QUEUE = "flow-runs.create"


async def run_and_show(server: PrefectServer, broker: str, folder: Path, picture: Path) -> None:
    """Have a run executed, and take a picture of its page."""
    async with (
        httpx.AsyncClient(base_url=server.api, timeout=60) as http,
        Producer(broker, QUEUE) as producer,
    ):
        both = Both(http, producer)
        name = await deploy_greeting(both, folder, name="greeting")
        worker = start_process_worker(server, "greeting", folder)
        try:
            node = NodeProducer(folder, broker, QUEUE)
            done = node.create(name, "order-4711", '{"name": "Node"}')
            print(f'$ node create.mjs {name} order-4711 \'{{"name": "Node"}}\'\n{done.stdout}{done.stderr}')
            run_id = json.loads(done.stdout.partition("\n")[2])["id"]
            run = await both.ended(run_id)
            print(f"{run['name']}: {run['state_type']}, tags {run['tags']}, parameters {run['parameters']}")
            wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}}
            async with asyncio.timeout(60):
                while not any(
                    "hello Node" in log["message"] for log in await both.post("/logs/filter", wanted)
                ):
                    await asyncio.sleep(0.3)
        finally:
            worker.stop()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={folder}/browser", f"--window-size={SIZE}"),
        *(f"--virtual-time-budget={PAGE_MILLISECONDS}", f"--screenshot={picture.absolute()}"),
        f"{server.url}/runs/flow-run/{run_id}",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    with Image.open(picture) as taken:
        taken.quantize(COLOURS).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size:,} bytes")


def main(picture: Path) -> None:
    """Start the servers, and take the picture."""
    with tempfile.TemporaryDirectory() as name, RabbitMQ() as rabbitmq:
        folder = Path(name)
        url = f"sqlite+aiosqlite:///{folder}/prefect.db"
        with PrefectServer(url, ui=True) as server:
            environment = {
                "WORKER_AMQP_URL": rabbitmq.url,
                "WORKER_DATABASE_URL": url,
                "WORKER_DATABASE_KIND": "prefect",
                "WORKER_QUEUE": QUEUE,
                "WORKER_HTTP_PORT": "0",
            }
            worker = WorkerProcess(folder / "worker.log", environment)
            try:
                worker.wait_until_logged("serving")
                asyncio.run(run_and_show(server, rabbitmq.url, folder, picture))
            finally:
                worker.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
