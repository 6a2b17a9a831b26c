"""A Docker engine of the tests' own, with Compose, and the images that docker-compose.yml names.
Linux, as root.

The engine lives in namespaces of its own for processes, mounts and network: when it ends, the
kernel removes its containers, mounts, bridges and firewall rules. There is no registry of images:
their bases are made of Debian's packages.
"""

import ctypes
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

from tests.conformance.prefect_server import VERSION, requirements
from tests.support.packages import install_once
from tests.support.processes import Server, ServerFailed, ServerProcess
from tests.support.worker_process import ROOT

CACHE = ROOT / ".cache/docker"
# The worker's base image, as the Dockerfile names it.
(PYTHON,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
PYTHON_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates,tzdata,netbase"
# Its programs, and a pip that installs.
_AS_PYTHONS_IMAGE = """
set -eu
rm "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED
ln -s python3 "$1/usr/bin/python"
"""
# The other base. Debian 13 has RabbitMQ 4, PostgreSQL 17 and Compose 2.
SERVERS = "servers-of-debian"
SERVERS_PACKAGES = "rabbitmq-server,postgresql,wget"
# Prometheus without its many dependencies, which only its pages need.
_PROMETHEUS_AND_COMPOSE = f"""
set -eu
cd {shlex.quote(str(CACHE))}
rm -rf packages
mkdir packages
cd packages
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get download -qq prometheus docker-compose
for package in *.deb; do dpkg -x $package .; done
install usr/bin/prometheus "$1/usr/bin"
install -D usr/libexec/docker/cli-plugins/docker-compose ../cli-plugins/docker-compose
rm -r ../packages
"""
_NO_CLUSTER = """
mkdir -p "$1/etc/postgresql-common"
echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"
"""
# Half of what the packages have.
_NOT_NEEDED = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"),
    *("/usr/lib/*/libLLVM*", "/usr/lib/*/libz3*", "/usr/lib/postgresql/*/lib/bitcode/*"),
    "/usr/lib/postgresql/*/lib/llvmjit.so",
)
# The address of slirp4netns's name server.
NAME_SERVER = "10.0.2.3"
# In the engine's namespaces. It has folders in /run and /opt that no setting moves.
_START = """
mount -t tmpfs run /run
mount --rbind /opt /opt
mount -o remount,bind,ro /opt
ip link set lo up
exec dockerd --config-file "$1"
"""
# The end of such a process ends all others in its namespaces, and Debian's scripts, which end
# processes by name, find no others.
ALONE = ("unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child")
# Settings of pip, besides its indexes.
_WAY_TO_AN_INDEX = {"cert", "proxy", "timeout", "trusted-host"}


class EngineMissing(Exception):
    """No engine can be started here, or no base image be made; the message says why."""


class Engine(Server):
    """One at a time uses the cache of images; others wait."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="docker-"))
        self._cgroup = self._folder.name
        self._environment = {
            **os.environ,
            # Debian's client first, which builds without another package.
            "PATH": f"/usr/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
            "DOCKER_HOST": f"unix://{self._folder}/socket",
            "DOCKER_CONFIG": str(CACHE),
            "DOCKER_BUILDKIT": "1",
        }
        self._end = ExitStack()
        self._end.callback(shutil.rmtree, self._folder, ignore_errors=True)

    def start(self) -> None:
        """Install and start it.

        Raises:
            EngineMissing: this machine lacks a program, or forbids one of its operations.
        """
        if os.getuid():
            raise EngineMissing("only root can start one")
        servers = [ROOT / "tests/support/servers.sh", "docker", "slirp4netns", "mmdebstrap"]
        done = subprocess.run(servers, capture_output=True, text=True)
        if done.returncode:
            raise EngineMissing(done.stderr)
        CACHE.mkdir(parents=True, exist_ok=True)
        lock = self._end.enter_context((CACHE / "lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            self._start()
        except ServerFailed as failed:
            raise EngineMissing(str(failed)) from failed
        # A session that was killed has left some.
        self._remove_containers()
        self._end.callback(self._remove_containers)

    def _remove_containers(self) -> None:
        for listed, removed in (
            (("ps", "--all"), ("rm", "--force")),
            (("volume", "ls"), ("volume", "rm")),
            (("images", "--filter", "dangling=true"), ("rmi",)),
        ):
            if found := self.docker(*listed, "--quiet").split():
                self.docker(*removed, *found)
        self.docker("network", "prune", "--force")

    def _start(self) -> None:
        settings = {
            "data-root": str(CACHE / "data"),
            "hosts": [self._environment["DOCKER_HOST"]],
            "dns": [NAME_SERVER],
            "cgroup-parent": f"/{self._cgroup}",
            # Each change of the worker makes another layer of 80 MB.
            "builder": {"gc": {"enabled": True, "defaultKeepStorage": "2GB"}},
            "deprecated-key-path": str(self._folder / "key.json"),
        }
        file = self._folder / "daemon.json"
        file.write_text(json.dumps(settings))
        engine = ServerProcess(
            [*ALONE, "--net", "--ipc", "--uts", "sh", "-euc", _START, "sh", str(file)],
            self._folder / "log",
            env=self._environment,
        )
        self._end.callback(self._remove_cgroup)
        self._end.callback(engine.stop, seconds=60)
        engine.wait_until(lambda: self.run("version").returncode == 0)
        self._pid = int(Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text())
        network = ServerProcess(
            ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", str(self._pid), "tap0"],
            self._folder / "network",
            env=self._environment,
        )
        self._end.callback(network.stop)
        network.wait_until(lambda: "tap0:" in Path(f"/proc/{self._pid}/net/dev").read_text())

    def close(self) -> None:
        self._end.close()

    def _remove_cgroup(self) -> None:
        for top in (*Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}"), Path("/sys/fs/cgroup", self._cgroup)):
            for folder, _, _ in os.walk(top, topdown=False):
                os.rmdir(folder)

    @contextmanager
    def network(self) -> Iterator[None]:
        """Move this thread and its later children to the engine's network, where ports are
        published on loopback.
        """
        with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{self._pid}/ns/net") as theirs:
            _enter(theirs.fileno())
            try:
                yield
            finally:
                _enter(ours.fileno())

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ``docker``, in the repository's root."""
        return subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def docker(self, *arguments: str, **environment: str) -> str:
        """The same for a command that has to succeed; returns its output."""
        done = self.run(*arguments, **environment)
        if done.returncode:
            raise ServerFailed(f"docker {shlex.join(arguments)}:\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout

    # -- images

    def build(self) -> None:
        """Build all images of docker-compose.yml that are to be had; those of earlier sessions are
        reused.

        Raises:
            EngineMissing: this machine can't make a base image.
            ServerFailed: an image can't be built.
        """
        prefect = CACHE / "prefect"
        for_python = ("--python-version", "3.11", "--only-binary", ":all:")
        with ThreadPoolExecutor() as pool:
            done = [
                pool.submit(self._build_worker),
                pool.submit(self._import, SERVERS, "trixie", SERVERS_PACKAGES, _PROMETHEUS_AND_COMPOSE),
                pool.submit(install_once, prefect, requirements(VERSION), *for_python),
            ]
            for each in done:
                each.result()
        files = ("--file", "docker-compose.yml", "--file", "tests/deploy/engine/images.yml")
        others = ("rabbitmq", "postgres", "prometheus", "prefect")
        self.docker("compose", *files, "build", *others, PYTHON=PYTHON, SERVERS=SERVERS)

    def _build_worker(self) -> None:
        self._import(PYTHON, "bookworm", PYTHON_PACKAGES, _AS_PYTHONS_IMAGE + _pip())
        self.docker("build", "-f", "deploy/Dockerfile", "-t", "flow-run-worker", ".")

    def _import(self, name: str, release: str, packages: str, complete: str) -> None:
        """Make an image of Debian's packages, unless it is there.

        Args:
            complete: shell commands on its root, the first argument.

        Raises:
            EngineMissing: it can't be made.
        """
        excluded = [f"--dpkgopt=path-exclude={path}" for path in _NOT_NEEDED]
        hooks = [f"--essential-hook={_NO_CLUSTER}", f"--customize-hook={complete}"]
        make = ["mmdebstrap", "--variant=minbase", f"--include={packages}", *excluded, *hooks, release, "-"]
        recipe = sha256(shlex.join(make).encode()).hexdigest()
        if self.run("inspect", "--format", "{{.Config.Labels.recipe}}", name).stdout.strip() == recipe:
            return
        changes = [
            f"LABEL recipe={recipe}",
            "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        load = ["docker", "import", *(f"--change={each}" for each in changes), "-", name]
        with (self._folder / f"{release}.log").open("w+") as log:
            making = subprocess.Popen([*ALONE, *make], stdout=subprocess.PIPE, stderr=log)
            loaded = subprocess.run(
                load, stdin=making.stdout, env=self._environment, capture_output=True, text=True
            )
            if making.wait() or loaded.returncode:
                log.seek(0)
                raise EngineMissing(f"{name}:\n{log.read()[-2000:]}{loaded.stderr}")


def _pip() -> str:
    """Shell commands that write pip's settings: how to reach the indexes, without the indexes on
    this machine's disk.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    settings: dict[str, str] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        name, _, value = line.partition("=")
        # Environment variables come first, and win.
        settings.setdefault(name.rpartition(".")[2], value.strip("'"))
    lines = [
        "[global]",
        *(f"{name} = {settings[name]}" for name in sorted(_WAY_TO_AN_INDEX & settings.keys())),
    ]
    for name in ("index-url", "extra-index-url"):
        if urls := [url for url in settings.get(name, "").split() if not url.startswith("file:")]:
            lines.append(f"{name} = {' '.join(urls)}")
    commands = f'printf "%s\\n" {shlex.join(lines)} >"$1/etc/pip.conf"\n'
    if certificates := settings.get("cert"):
        # With their digest, so that others make another image.
        digest = sha256(Path(certificates).read_bytes()).hexdigest()
        commands += f'install -D -m 644 {shlex.quote(certificates)} "$1{certificates}" # {digest}\n'
    return commands


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")
