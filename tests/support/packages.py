"""Installs Python packages: by uv, in a tenth of pip's time, or by pip if uv fails, such as with an
index that only pip knows.
"""

import fcntl
import subprocess
import sys
from hashlib import sha256
from pathlib import Path


class InstallFailed(Exception):
    """The installation failed; the message is pip's."""


def install_once(
    folder: Path, requirements: Path, *options: str, environment: bool = False, python: str = sys.executable
) -> None:
    """Install a file's requirements into a folder: at the first call, and when the file has
    changed. Several processes may call it.

    Args:
        environment: whether the folder is a virtual environment, made anew.
        python: makes the environment.

    Raises:
        InstallFailed: the installation fails.
    """
    digest = sha256(requirements.read_bytes()).hexdigest()
    installed = folder / "installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if installed.exists() and installed.read_text() == digest:
            return
        if environment:
            make = [python, "-m", "venv", "--clear", str(folder)]
            subprocess.run(make, check=True, timeout=120)
            install(requirements, *options, python=folder / "bin" / "python")
        else:
            install(requirements, *options, "--target", str(folder), "--upgrade")
        installed.write_text(digest)


def install(requirements: Path, *options: str, python: Path | None = None) -> None:
    """Install exactly a file's requirements, with hashes.

    Args:
        options: known to both pip and uv.
        python: of the environment; ours by default.

    Raises:
        InstallFailed: pip fails as well.
    """
    into = str(python or sys.executable)
    what = ["--quiet", "--no-deps", "--require-hashes", *options, "--requirement", str(requirements)]
    by_uv = [sys.executable, "-m", "uv", "pip", "install", "--python", into, *what]
    # Python compiles modules on import.
    by_pip = [into, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *what]
    for command in (by_uv, by_pip):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if not done.returncode:
            return
    raise InstallFailed(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
