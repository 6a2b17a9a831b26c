"""A real Chromium for tests and pictures, driven by Playwright, which is installed once into
``.cache``.
"""

import importlib
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support import packages
from tests.support.worker_process import ROOT

REQUIREMENTS = ROOT / "tests" / "support" / "browser.txt"
NAMES = ("chromium", "chromium-browser", "google-chrome")
# In milliseconds. Machines are busy.
TIMEOUT = 120_000


def chromium() -> str | None:
    """The path of the browser, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """A browser (``playwright.async_api.Browser``)."""
    folder = ROOT / ".cache" / "browser"
    packages.install_once(folder, REQUIREMENTS)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    playwright = importlib.import_module("playwright.async_api")
    # As root in a container Chromium has no sandbox, and little shared memory.
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    async with playwright.async_playwright() as running:
        started = await running.chromium.launch(executable_path=chromium(), args=arguments, timeout=TIMEOUT)
        try:
            yield started
        finally:
            await started.close()
