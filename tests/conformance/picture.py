"""``python -m tests.conformance.picture FILE.png``: takes a picture of a run in a Prefect server's
own pages. A message from Node.js started the run by the name of a deployment, and a process worker
executed it. Needs Node.js and Chromium.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from PIL import Image

from tests.support.browser import chromium
from tests.support.demo_prefect import NAME, Scene, scene
from tests.support.node import NodeProducer
from tests.support.rabbitmq import RabbitMQ

# Size of the picture in pixels, and milliseconds of the page's own time to load.
SIZE = "1200,780"
PAGE_MILLISECONDS = 20_000
# Few enough for a small file, without a visible change.
COLOURS = 64


async def executed(at: Scene, run_id: str) -> None:
    """Wait until the run has ended and its log is there."""
    async with httpx.AsyncClient(base_url=at.server.api, timeout=60) as http, asyncio.timeout(120):
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}}
        while not any(
            "invoice of" in log["message"] for log in (await http.post("/logs/filter", json=wanted)).json()
        ):
            await asyncio.sleep(0.3)


def run_and_show(at: Scene, folder: Path, picture: Path) -> None:
    """Have a run executed, and take a picture of its page."""
    node = NodeProducer(folder, at.amqp_url, at.queue)
    done = node.create(NAME, "order-4711", '{"order": 4711, "customer": "Node"}')
    print(f"{done.stdout}{done.stderr}")
    run_id = json.loads(done.stdout.partition("\n")[2])["id"]
    asyncio.run(executed(at, run_id))
    command = [
        *(chromium() or "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={folder}/browser", f"--window-size={SIZE}"),
        *(f"--virtual-time-budget={PAGE_MILLISECONDS}", f"--screenshot={picture.absolute()}"),
        f"{at.server.url}/runs/flow-run/{run_id}",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    with Image.open(picture) as taken:
        taken.quantize(COLOURS).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size:,} bytes")


def main(picture: Path) -> None:
    """Start the servers, and take the picture."""
    with (
        tempfile.TemporaryDirectory() as name,
        RabbitMQ() as rabbitmq,
        scene(Path(name), rabbitmq.url, ui=True) as at,
    ):
        run_and_show(at, Path(name), picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
