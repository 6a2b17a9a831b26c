"""Runs a program like a container engine: with its own file system, network address, process
numbers, user and rights. Linux, as root; knows nothing of images' origins.

It uses namespaces, an overlay over a read-only folder, and util-linux, but no engine. It has no
limits of memory and CPU and no seccomp.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.support.processes import Server, ServerFailed, ServerProcess, wait_until

BRIDGE = "10.89.0.1"
# Prints the page at the URL in its argument.
FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=60).read().decode())"


@dataclass(frozen=True)
class Image:
    """A file system, and how a program starts on it.

    Attributes:
        root: its folder; it is only read.
        steps: shell commands that complete it, in the container's own copy.
        shared: paths of this machine that are visible at the same place, read-only.
    """

    root: Path
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = "root"
    workdir: str = "/"
    stop_signal: str = "SIGTERM"
    healthcheck: tuple[str, ...] = ()
    steps: str = ""
    shared: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine, mounted somewhere in the container."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Rights:
    """Restrictions of a container beyond its user's rights.

    Attributes:
        tmpfs: where it may write even if its file system is read-only.
    """

    read_only: bool = False
    tmpfs: tuple[str, ...] = ()
    drop_capabilities: bool = False
    no_new_privileges: bool = False


class Network(Server):
    """A virtual machine with a bridge for containers and their names, apart from this machine's own
    network.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="network-"))
        self._names = self.folder / "names"
        self._names.mkdir()
        self._numbers = count(2)
        self._processes: list[ServerProcess] = []

    def start(self) -> None:
        """Make the bridge, and a name server.

        Raises:
            ServerFailed: this machine lacks a program, or may not make namespaces.
        """
        self._machine = self._started("machine", ["unshare", "--net", "sleep", "infinity"])
        # unshare becomes sleep once the namespace is there.
        wait_until(
            lambda: os.readlink(f"/proc/{self._machine.pid}/ns/net") != os.readlink("/proc/self/ns/net"),
            "a network namespace",
        )
        self.checked("ip", "link", "set", "lo", "up")
        self.checked("ip", "link", "add", "bridge0", "type", "bridge")
        self.checked("ip", "addr", "add", f"{BRIDGE}/24", "dev", "bridge0")
        self.checked("ip", "link", "set", "bridge0", "up")
        answer = ("--no-resolv", "--no-hosts", f"--hostsdir={self._names}", f"--listen-address={BRIDGE}")
        # It would change to a user that may not read the folder.
        stay = ("--keep-in-foreground", "--bind-interfaces", "--user=root", "--pid-file=", "--conf-file=")
        self._started("dnsmasq", self.within("dnsmasq", *stay, *answer, "--log-facility=-"))

    def within(self, *command: str) -> list[str]:
        """A command in the machine's namespaces, with its loopback interface."""
        return ["nsenter", f"--net=/proc/{self._machine.pid}/ns/net", *command]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine."""
        return subprocess.run(
            self.within(*command),
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def checked(self, *command: str) -> str:
        """Run a command on the machine that has to succeed; returns its output."""
        done = self.run(*command)
        if done.returncode:
            raise ServerFailed(f"{shlex.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def get(self, url: str) -> str:
        """Ask for a page from the machine."""
        return self.checked(sys.executable, "-c", FETCH, url)

    def address(self) -> str:
        """An unused address."""
        return f"{BRIDGE.rpartition('.')[0]}.{next(self._numbers)}"

    def join(self, process: int, address: str) -> None:
        """Put a process's network namespace on the bridge, as its ``eth0``."""
        outer = f"veth{address.rpartition('.')[2]}"
        peer = ("peer", "name", "eth0", "netns", str(process))
        self.checked("ip", "link", "add", outer, "type", "veth", *peer)
        self.checked("ip", "link", "set", outer, "master", "bridge0", "up")

    def name(self, address: str, *names: str) -> None:
        """Let these names resolve to this address."""
        (self._names / address).write_text(f"{address} {' '.join(names)}\n")

    def forget(self, address: str) -> None:
        """Remove all names of an address."""
        (self._names / address).unlink(missing_ok=True)

    def publish(self, host: str, port: int, address: str, target: int) -> None:
        """Forward a port of the machine."""
        listen = f"TCP-LISTEN:{port},bind={host},fork,reuseaddr"
        self._started(f"port-{port}", self.within("socat", listen, f"TCP:{address}:{target}"))

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _started(self, name: str, command: list[str]) -> ServerProcess:
        process = ServerProcess(command, self.folder / name, env=dict(os.environ))
        self._processes.append(process)
        return process


# Runs in namespaces of its own, with the container's folder as its first argument.
_SET_UP = r"""
set -eu
folder=$1; image=$2; address=$3; gateway=$4; host=$5; read_only=$6; shift 6
mount --make-rprivate /
root=$folder/root
mount -t tmpfs container "$folder/layer"
cd "$folder/layer"
mkdir upper work
mount -t overlay container -o "lowerdir=$image,upperdir=upper,workdir=work" "$root"
mkdir -p "$root/proc" "$root/dev" "$root/tmp"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
hostname "$host"
if [ -n "$address" ]; then
    rm -f "$root/etc/resolv.conf"
    echo "nameserver $gateway" >"$root/etc/resolv.conf"
    echo "127.0.0.1 localhost
$address $host" >"$root/etc/hosts"
    until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
    ip link set lo up
    ip addr add "$address/24" dev eth0
    ip link set eth0 up
fi
. "$folder/mounts"
[ "$read_only" = no ] || mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""


class Container:
    """A program on an image, from its start to its end.

    Args:
        network: None for this machine's own.
        environment: besides the image's.
        mounts: in this order.
    """

    def __init__(
        self,
        name: str,
        image: Image,
        network: Network | None,
        *,
        command: Sequence[str] = (),
        entrypoint: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        hostname: str | None = None,
        mounts: Sequence[Mount] = (),
        rights: Rights | None = None,
    ) -> None:
        rights = rights or Rights()
        self.name = name
        self.address = network.address() if network else ""
        self._image = image
        self._network = network
        # As in an engine: a caller with an entry point gives its arguments as well.
        default = image.command if entrypoint is None else ()
        program = [*(image.entrypoint if entrypoint is None else entrypoint), *(command or default)]
        self._as_user = self._confined(
            user or image.user, {**image.environment, **(environment or {})}, rights
        )
        self._folder = Path(tempfile.mkdtemp(prefix=f"container-{name}-"))
        for each in ("root", "layer"):
            (self._folder / each).mkdir()
        (self._folder / "mounts").write_text(self._mounts(mounts, rights))
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        if network:
            namespaces.append("--net")
        host = hostname or name
        arguments = (str(self._folder), str(image.root), self.address, BRIDGE, host)
        read_only = "yes" if rights.read_only else "no"
        if network:
            network.name(self.address, name, host)
        self._process = ServerProcess(
            [
                "unshare",
                *namespaces,
                "sh",
                "-c",
                _SET_UP,
                "sh",
                *arguments,
                read_only,
                *self._as_user,
                *program,
            ],
            self._folder / "output",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            # If this process ends early, an orderly end is not needed.
            orderly=signal.SIGKILL,
        )
        wait_until(lambda: self.code is not None or self._first() is not None, f"a process of {name}")
        if network and (first := self._first()) is not None:
            network.join(first, self.address)

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.code

    @property
    def output(self) -> str:
        """Its output so far."""
        return (self._folder / "output").read_text(errors="replace")

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run one more command in it, as its user."""
        first = self._first()
        if first is None:
            return subprocess.CompletedProcess(command, 1, "", f"{self.name} has ended")
        inside = ("--mount", "--net", "--pid", "--uts", "--ipc", "--root", "--wd=/")
        return subprocess.run(
            ["nsenter", f"--target={first}", *inside, *self._as_user, *command],
            capture_output=True,
            text=True,
            timeout=300,
        )

    def status(self) -> dict[str, str]:
        """The kernel's status of its first process."""
        lines = Path(f"/proc/{self._first()}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def stop(self, number: str | None = None, seconds: float = 60.0) -> int:
        """Ask it to end, and wait; returns the exit code, or the negative number of the signal that
        ended it.
        """
        first = self._first()
        if first is not None:
            os.kill(first, signal.Signals[number or self._image.stop_signal])
        return self._process.wait(seconds)

    def close(self) -> None:
        """End it at once, and delete its files."""
        if self.code is None:
            self._process.kill()
        else:
            self._process.wait(0)
        if self._network:
            self._network.forget(self.address)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _first(self) -> int | None:
        """The number of its first process outside."""
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        except OSError:
            return None
        return int(children.split()[0]) if children else None

    def _mounts(self, mounts: Sequence[Mount], rights: Rights) -> str:
        """The shell commands that set up this container's own mounts."""
        # First, as later mounts may lie in one of them: this checkout may be below /tmp.
        lines = []
        for target in rights.tmpfs:
            lines += [f'mkdir -p "$root{target}"', f'mount -t tmpfs -o mode=1777 tmpfs "$root{target}"']
        for path in self._image.shared:
            lines += [f'mkdir -p "$root{path}"', f'mount --rbind {shlex.quote(str(path))} "$root{path}"']
            # Users without access to root's home must find the files shared from there.
            lines += [f'chmod a+x "$root{parent}"' for parent in path.parents]
        if self._image.steps:
            lines.append(f'chroot "$root" sh -euc {shlex.quote(self._image.steps)}')
        for mount in mounts:
            source, target = shlex.quote(str(mount.source)), shlex.quote(mount.target)
            make = (
                'mkdir -p "$target"' if mount.source.is_dir() else 'mkdir -p "${target%/*}"; touch "$target"'
            )
            lines += [f'target="$root"{target}', make]
            if not mount.read_only and mount.source.is_dir() and not any(mount.source.iterdir()):
                # As in an engine: a new volume starts as a copy of the image's folder.
                lines.append(f'chown --reference="$target" {source}; chmod --reference="$target" {source}')
            lines.append(f'mount --bind {source} "$target"')
            if mount.read_only:
                lines.append('mount -o remount,bind,ro "$target"')
        return "\n".join(lines) + "\n"

    def _confined(self, user: str, environment: Mapping[str, str], rights: Rights) -> list[str]:
        """The command prefix that sets the user, the rights and the environment inside."""
        uid, gid = self._ids(user)
        command = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        if rights.drop_capabilities:
            command += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        if rights.no_new_privileges:
            command.append("--no-new-privs")
        default = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        pairs = [f"{name}={value}" for name, value in {**default, **environment}.items()]
        return [*command, "env", "-i", f"--chdir={self._image.workdir}", *pairs]

    def _ids(self, user: str) -> tuple[str, str]:
        name, _, group = user.partition(":")
        for line in (self._image.root / "etc/passwd").read_text().splitlines():
            fields = line.split(":")
            if name in (fields[0], fields[2]):
                return fields[2], group or fields[3]
        if not name.isdecimal():
            raise ServerFailed(f"unable to find user {name}: no matching entries in passwd file")
        return name, group or "0"
