"""The command ``ui`` in a process of its own, and a client that has its token."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.support.processes import wait_until
from tests.support.worker_process import WorkerProcess


class UiProcess(WorkerProcess):
    """``flow-run-worker ui`` at a free port.

    Attributes:
        url: with the token.
        origin: without it.
    """

    def __init__(self, log: Path, environment: dict[str, str], *arguments: str) -> None:
        command = [sys.executable, "-m", "worker", "ui", "--port", "0", *arguments]
        super().__init__(log, environment, command)
        wait_until(lambda: "Open http" in self.output or self.process.poll() is not None, "its URL")
        found = re.search(r"Open (http\S+)", self.output)
        assert found is not None, self.output
        self.url = found[1]
        parts = urlsplit(self.url)
        self.origin = f"{parts.scheme}://{parts.netloc}"

    @contextmanager
    def client(self) -> Iterator["UiClient"]:
        """A client that has opened the URL, as a browser does."""
        with UiClient(base_url=self.origin, timeout=120, headers={"Origin": self.origin}) as http:
            assert http.get(self.url).status_code == 200
            yield http


class UiClient(httpx.Client):
    """Fills forms as a browser does, without a script."""

    def text(self, path: str) -> str:
        """A page as a reader sees it, more or less: without markup."""
        answer = self.get(path, follow_redirects=True)
        assert answer.status_code == 200, answer.text
        return without_markup(answer.text)

    def submit(self, page: str, path: str, /, **fields: str) -> httpx.Response:
        """Send a form of a page, and wait for the job that it starts."""
        token = re.search(r'name="form_token" value="([^"]+)"', self.get(page).text)
        assert token is not None
        answer = self.post(path, data={"form_token": token[1], **fields}, follow_redirects=True)

        def done() -> bool:
            nonlocal answer
            if "data-running" in answer.text:
                answer = self.get(answer.url, follow_redirects=True)
            return "data-running" not in answer.text

        wait_until(done, path, every=0.2)
        return answer


def without_markup(html: str) -> str:
    """The text of a page."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())
