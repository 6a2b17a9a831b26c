"""Builds deploy/Dockerfile with Buildah, which needs no engine, and lists the image's content.

There is no registry of images. The base image is made of Debian's packages instead, with the
programs that the Dockerfile expects of ``python:3.11-slim-bookworm``. It has a name of its own, and
the build gets it as the Dockerfile's argument. All of it is kept in ``.cache/image``.
"""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.container import Image
from tests.support.worker_process import ROOT

CACHE = ROOT / ".cache/image"
BASE = "localhost/python-of-debian:bookworm"
NAME = "localhost/flow-run-worker"
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates,tzdata,netbase"
# Makes the base like Python's image: its programs, and a pip that installs.
_AS_PYTHONS_IMAGE = """
rm usr/lib/python3.*/EXTERNALLY-MANAGED
ln -s python3 usr/bin/python
"""
# Buildah asks for more rights than root in a container may have.
_CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:20000", "nproc=1024:32768"]
"""
# Needs of a container that not every machine allows.
_PROBE = """
mount -t tmpfs probe "$PWD"
cd "$PWD"
mkdir lower upper work root
mount -t overlay probe -o lowerdir=lower,upperdir=upper,workdir=work root
"""
# Settings of pip, besides its indexes.
_WAY_TO_AN_INDEX = {"cert", "proxy", "timeout", "trusted-host"}


class BuildFailed(Exception):
    """The image can't be built here; the message says why."""


@dataclass(frozen=True)
class Layer:
    """A layer of the image, and the instruction that made it."""

    instruction: str
    size: int


class Builder:
    """Buildah with a store of its own.

    Args:
        say: called with each command.

    Raises:
        BuildFailed: Buildah can't be installed, or this machine forbids an operation of it.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        servers = [str(ROOT / "tests/support/servers.sh"), "buildah", "mmdebstrap"]
        done = subprocess.run(servers, capture_output=True, text=True)
        if done.returncode or os.getuid():
            raise BuildFailed(done.stderr or "only root can build the image without an engine")
        with tempfile.TemporaryDirectory(prefix="probe-") as folder:
            alone = ["unshare", "--net", "--pid", "--mount", "--fork", "sh", "-euc", _PROBE]
            if subprocess.run(alone, cwd=folder, capture_output=True).returncode:
                raise BuildFailed("this machine lets nobody make namespaces and overlays")
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / "containers.conf").write_text(_CONTAINERS)
        self._environment = {**os.environ, "CONTAINERS_CONF": str(CACHE / "containers.conf")}

    def build(self, context: str = ".", dockerfile: str = "deploy/Dockerfile") -> None:
        """Build the missing parts of the image; the arguments are named as in a compose file."""
        with _locked():
            self._base()
            self._build(ROOT / context, dockerfile)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the built image, as Buildah does."""
        container = self._buildah("from", NAME).strip()
        try:
            return self._do(["run", "--isolation", "chroot", container, "--", *command])
        finally:
            self._buildah("rm", container)

    @contextmanager
    def mounted(self) -> Iterator[Image]:
        """The built image, to run it in other ways."""
        container = self._buildah("from", NAME).strip()
        try:
            yield self._image(Path(self._buildah("mount", container).strip()))
        finally:
            self._buildah("rm", container)

    def layers(self) -> list[Layer]:
        """The layers of the image, the base's first."""
        image = self._inspected()
        sizes = [each["size"] for each in json.loads(image["Manifest"])["layers"]]
        made = [each["created_by"] for each in image["Docker"]["history"] if not each.get("empty_layer")]
        return [Layer(made_by, size) for made_by, size in zip(made, sizes, strict=True)]

    def _inspected(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._buildah("inspect", "--type", "image", NAME))
        return found

    def _image(self, root: Path) -> Image:
        config = self._inspected()["Docker"]["config"]
        health = config.get("Healthcheck", {}).get("Test", [])
        return Image(
            root,
            entrypoint=tuple(config["Entrypoint"]),
            command=tuple(config["Cmd"]),
            environment=dict(each.split("=", 1) for each in config["Env"]),
            user=config["User"],
            workdir=config["WorkingDir"],
            stop_signal=config["StopSignal"],
            healthcheck=tuple(health[1:] if health[:1] == ["CMD"] else ()),
        )

    def _base(self) -> None:
        if self._do(["inspect", "--type", "image", BASE]).returncode == 0:
            return
        with tempfile.TemporaryDirectory(prefix="base-image-") as folder:
            # In a process namespace of its own, as Debian's scripts end processes by name.
            alone = ["unshare", "--pid", "--fork", "--mount", "--mount-proc"]
            make = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder]
            self._say(f"$ {shlex.join(make)}")
            _checked(subprocess.run([*alone, *make], capture_output=True, text=True))
            _checked(
                subprocess.run(["sh", "-euc", _AS_PYTHONS_IMAGE], cwd=folder, capture_output=True, text=True)
            )
            container = self._buildah("from", "scratch").strip()
            self._buildah("add", "--quiet", container, folder, "/")
            path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
            self._buildah("config", "--env", path, "--created-by", "mmdebstrap", container)
            self._buildah("commit", "--quiet", "--rm", "--format", "docker", container, BASE)

    def _build(self, context: Path, dockerfile: str) -> None:
        with tempfile.TemporaryDirectory(prefix="pip-") as folder:
            mounts = [each for path in _pip(Path(folder)) for each in ("--volume", f"{path}:ro")]
            self._buildah(
                *("bud", "--format", "docker", "--isolation", "chroot", "--layers"),
                *("--build-arg", f"PYTHON_IMAGE={BASE}", *mounts),
                *("--file", str(context / dockerfile), "--tag", NAME, str(context)),
            )

    def _buildah(self, *arguments: str) -> str:
        done = self._do(arguments)
        _checked(done)
        return done.stdout

    def _do(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        store = ["--root", f"{CACHE}/store", "--runroot", f"{CACHE}/run", "--storage-driver", "overlay"]
        # The store's folder itself is not mounted, so it can be removed like any other.
        store += ["--storage-opt", "overlay.skip_mount_home=true"]
        command = ["buildah", *store, *arguments]
        self._say(f"$ buildah {shlex.join(arguments)}")
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=900)


def _pip(folder: Path) -> Iterator[str]:
    """Pip's settings for the build: how to reach the indexes, without the indexes on this machine's
    disk.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    settings: dict[str, str] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        name, _, value = line.partition("=")
        # Environment variables come first, and win.
        settings.setdefault(name.rpartition(".")[2], value.strip("'"))
    lines = [f"{name} = {settings[name]}" for name in _WAY_TO_AN_INDEX & settings.keys()]
    for name in ("index-url", "extra-index-url"):
        if urls := [url for url in settings.get(name, "").split() if not url.startswith("file:")]:
            lines.append(f"{name} = {' '.join(urls)}")
    file = folder / "pip.conf"
    file.write_text("\n".join(["[global]", *lines]) + "\n")
    yield f"{file}:/etc/pip.conf"
    if certificates := settings.get("cert"):
        yield f"{certificates}:{certificates}"


@contextmanager
def _locked() -> Iterator[None]:
    """Lock out other test processes."""
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checked(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise BuildFailed(f"{' '.join(map(str, done.args))}:\n{said}")


def main() -> None:
    """Build the image; print the commands, its layers and its largest parts."""
    try:
        builder = Builder(say=print)
        builder.build()
        for layer in builder.layers():
            print(f"{layer.size / 1e6:7.1f} MB  {layer.instruction}")
        packages = (
            "du -sk --apparent-size /opt/flow-run-worker/lib/python3.*/site-packages/* | sort -rn | head -8"
        )
        print(builder.run("sh", "-c", packages).stdout, end="")
    except BuildFailed as why:
        sys.exit(f"error: {why}")


if __name__ == "__main__":
    main()
