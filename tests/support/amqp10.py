"""A producer that speaks AMQP 1.0, by rhea for Node.js."""

import asyncio
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.node import installed
from tests.support.worker_process import ROOT


class AMQP10Producer:
    """Sends to one broker.

    Args:
        folder: for the program and its packages.
        port: the broker's.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = installed(ROOT / "tests/support/rhea", folder)
        self._port = port

    async def send(
        self, to: str, messages: Sequence[dict[str, Any]], *, source: str | None = None, replies: int = 0
    ) -> list[dict[str, Any]]:
        """Send messages, each with the outcome ``accepted``, and receive replies.

        Args:
            to: the queue.
            messages: as ``send.mjs`` describes them.
            source: the queue of the replies.
            replies: how many to wait for.

        Returns:
            The replies: ``headers`` (application properties), ``correlation_id``,
            ``content_type``, ``subject`` and ``text``.
        """
        asked = json.dumps({"to": to, "messages": messages, "from": source, "replies": replies})
        done = await asyncio.to_thread(
            subprocess.run,
            ["node", "send.mjs", str(self._port)],
            cwd=self._folder,
            input=asked,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]
