"""``make run``: a worker in the foreground, with the broker that it finds and the configured
database (SQLite by default).
"""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.broker import broker


def main() -> int:
    # On SIGTERM during the broker's start, it still ends the broker.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with broker() as (url, how):
        command = Path(sys.executable).with_name("flow-run-worker")
        prefix = "" if how == "WORKER_AMQP_URL" else f"WORKER_AMQP_URL={shlex.quote(url)} "
        print(f"Broker: {how}. Send a request from a second terminal:\n")
        print(
            f"  {prefix}{command} create --flow-id 5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11 "
            "--idempotency-key first\n",
            flush=True,
        )
        worker = subprocess.Popen([command, "run"], env={**os.environ, "WORKER_AMQP_URL": url})
        # Ctrl-C goes to the whole foreground group: the worker ends itself, and the broker ends
        # after it.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
        return worker.wait()


if __name__ == "__main__":
    sys.exit(main())
