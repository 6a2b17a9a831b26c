"""Installs packages of Python: by uv, in a tenth of pip's time, or by pip where uv fails, such as
with an index that only pip is told of.
"""

import subprocess
import sys
from pathlib import Path


class InstallFailed(Exception):
    """It can't be installed here; the message is pip's."""


def make_environment(folder: Path) -> None:
    """Make an environment with pip, in the place of what is there."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=120)


def install(requirements: Path, *options: str, python: Path | None = None) -> None:
    """Install exactly what a file says, with hashes, and nothing besides.

    Args:
        options: what pip and uv both know.
        python: of the environment; ours if there is none.

    Raises:
        InstallFailed: pip fails as well.
    """
    into = str(python or sys.executable)
    what = ["--quiet", "--no-deps", "--require-hashes", *options, "--requirement", str(requirements)]
    by_uv = [sys.executable, "-m", "uv", "pip", "install", "--python", into, *what]
    # Python compiles what is imported.
    by_pip = [into, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *what]
    for command in (by_uv, by_pip):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if not done.returncode:
            return
    raise InstallFailed(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
