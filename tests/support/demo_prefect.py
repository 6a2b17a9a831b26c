"""``make demo-prefect``: messages start a deployment of a real Prefect server, Prefect's own worker
executes it, and the producer waits for its end. All in a temporary folder.
"""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from rich.console import Console

from tests.conformance.prefect_server import PrefectMissing, PrefectServer
from tests.support.broker import broker
from tests.support.demo import forget
from tests.support.processes import ServerProcess
from tests.support.worker_process import WorkerProcess
from worker.client.sync import FlowRunClient
from worker.contract.record import FlowRunRecord

NAME = "invoice/nightly"
# A Prefect user's files: a flow, and the program that deploys it.
FLOW = """\
from prefect import flow


@flow(log_prints=True)
def invoice(order: int, customer: str = "nobody"):
    print(f"invoice of order {order} for {customer}")


if __name__ == "__main__":
    invoice.from_source(source=".", entrypoint="flows.py:invoice").deploy(
        name="nightly", work_pool_name="demo", print_next_steps=False
    )
"""

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Scene:
    """A Prefect server with the deployment :data:`NAME`, and workers of both kinds.

    Attributes:
        amqp_url: the broker's URL.
        queue: the request queue.
    """

    server: PrefectServer
    amqp_url: str
    queue: str


@contextmanager
def scene(folder: Path, amqp_url: str, *, ui: bool = False) -> Iterator[Scene]:
    """Start all of it, on SQLite; it ends with the context.

    Args:
        folder: for the database, the flow and logs.
        ui: the server has its pages.
    """
    database_url = f"sqlite+aiosqlite:///{folder}/prefect.db"
    queue = f"flow-runs-demo-{uuid4().hex[:6]}.create"
    (folder / "flows.py").write_text(FLOW)
    with PrefectServer(database_url, ui=ui) as server:
        console.print(f"Prefect: {server.api}, a server on SQLite.")
        environment = {
            "WORKER_AMQP_URL": amqp_url,
            "WORKER_DATABASE_URL": database_url,
            "WORKER_DATABASE_KIND": "prefect",
            "WORKER_PREFECT_API_URL": server.api,
            "WORKER_STATES": "final",
            "WORKER_QUEUE": queue,
            "WORKER_HTTP_PORT": "0",
        }
        ours = WorkerProcess(folder / "worker.log", environment)
        theirs = None
        try:
            _prefect(server, folder, "prefect", "work-pool", "create", "demo", "--type", "process")
            _prefect(server, folder, "python", "flows.py")
            start = [server.program("prefect"), "worker", "start", "--pool", "demo", "--type", "process"]
            # By default it looks for runs every ten seconds.
            often = {**server.environment, "PREFECT_WORKER_QUERY_SECONDS": "2"}
            theirs = ServerProcess(start, folder / "prefect-worker.log", env=often)
            ours.wait_until_logged("telling_states")
            yield Scene(server, amqp_url, queue)
        finally:
            if theirs is not None:
                theirs.stop()
            code = ours.terminate()
            asyncio.run(forget(amqp_url, queue))
            console.print(f"\nThe worker ended by SIGTERM, exit code {code}.")


def _prefect(server: PrefectServer, folder: Path, program: str, *arguments: str) -> None:
    """Run a command of Prefect's environment."""
    console.print(f"$ {shlex.join((program, *arguments))}", markup=False)
    command = [server.program(program), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=server.environment, capture_output=True, text=True, timeout=180
    )
    if done.returncode:
        sys.exit(f"It failed:\n{done.stdout}{done.stderr}")


def from_python(at: Scene) -> None:
    """Start the deployment by the client, and wait for the end of its run."""
    console.print("\nFrom Python:")
    parameters = {"order": 4711, "customer": "Zoë"}
    call = f'client.run_deployment("{NAME}", parameters={parameters}, wait=True)'
    console.print(f"    {call}", markup=False)
    with FlowRunClient(at.amqp_url, queue=at.queue) as client:
        run = client.run_deployment(NAME, parameters=parameters, idempotency_key="order-4711", wait=120)
    show(run)


def show(run: FlowRunRecord) -> None:
    """Show how a run ended."""
    console.print(
        f"    [green]{run.state_name}[/] run [bold]{run.name}[/] {run.id}, "
        f"parameters {run.parameters}, from {run.start_time:%H:%M:%S} to {run.end_time:%H:%M:%S}"
    )


def from_shell(at: Scene) -> None:
    """Start it from the shell, and wait likewise."""
    console.print("\nFrom the shell:")
    arguments = ["create", "--deployment", NAME, "--param", "order=4712", "--wait"]
    console.print(f"    $ flow-run-worker {shlex.join(arguments)}", markup=False)
    environment = {**os.environ, "WORKER_AMQP_URL": at.amqp_url, "WORKER_QUEUE": at.queue}
    command = [sys.executable, "-m", "worker", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=180)
    if done.returncode:
        sys.exit(f"It failed with exit code {done.returncode}.")
    show(FlowRunRecord.model_validate_json(done.stdout))


def main() -> None:
    # On SIGTERM, it still ends the processes that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console.print("Prefect is installed into .cache at the first time.")
    try:
        with tempfile.TemporaryDirectory(prefix="flow-run-worker-") as folder, broker() as (url, how):
            console.print(f"Broker: {how}.")
            with scene(Path(folder), url) as at:
                from_python(at)
                from_shell(at)
    except PrefectMissing as missing:
        sys.exit(f"Prefect can't be installed here: {missing}")


if __name__ == "__main__":
    main()
