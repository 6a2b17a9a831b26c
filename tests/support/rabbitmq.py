"""A private RabbitMQ node with its own ports, folder, name and port mapper, separate from
everything else on this machine.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Server, ServerFailed, ServerProcess, answers, free_ports, wait_until

ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
SERVER = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")


@dataclass(frozen=True)
class TLS:
    """The files of a TLS listener, in PEM.

    Attributes:
        authority: the certificate that verifies clients' certificates.
        certificate: the node's own.
        key: its private key.
        client_certificate: whether a client must have one.
    """

    authority: Path
    certificate: Path
    key: Path
    client_certificate: bool = False


class RabbitMQ(Server):
    """A private node, in a temporary folder.

    Args:
        plugins: names of plugins to enable.
        tls: adds a TLS listener.
        join: a running node to form a cluster with.
        settings: more lines of its ``rabbitmq.conf``.

    Attributes:
        name: the node's name.
        url: its URL; user and password are ``guest``.
        tls_url: its URL with TLS, if enabled; the same user.
        management_url: the management API's URL, if that plugin is enabled; the same user.
        metrics_url: the URL of the metrics for Prometheus, if that plugin is enabled.
    """

    def __init__(
        self,
        plugins: Sequence[str] = (),
        tls: TLS | None = None,
        join: "RabbitMQ | None" = None,
        settings: Mapping[str, int | str] | None = None,
    ) -> None:
        executable()
        self.port, management, self._distribution, port_mapper, tls_port, metrics = free_ports(6)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self.tls_url = f"amqps://guest:guest@localhost:{tls_port}/"
        self.management_url = f"http://127.0.0.1:{management}"
        self.metrics_url = f"http://127.0.0.1:{metrics}"
        self._join = join
        self.name = f"private{self.port}@localhost"
        self._folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self._port_mapper_port: int = port_mapper
        if join is not None:
            self._port_mapper_port = join._port_mapper_port
            shutil.copy(join._folder / ".erlang.cookie", self._folder)
        config = (
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "disk_free_limit.absolute = 50MB\n"
            "vm_memory_high_watermark.absolute = 2GB\n"
            "log.console.level = warning\n"
        )
        config += "".join(f"{name} = {value}\n" for name, value in (settings or {}).items())
        if "rabbitmq_management" in plugins:
            config += f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n"
        if "rabbitmq_prometheus" in plugins:
            config += f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {metrics}\n"
        if tls is not None:
            config += (
                f"listeners.ssl.1 = 127.0.0.1:{tls_port}\n"
                f"ssl_options.cacertfile = {tls.authority}\n"
                f"ssl_options.certfile = {tls.certificate}\n"
                f"ssl_options.keyfile = {tls.key}\n"
                f"ssl_options.verify = {'verify_peer' if tls.client_certificate else 'verify_none'}\n"
                f"ssl_options.fail_if_no_peer_cert = {str(tls.client_certificate).lower()}\n"
            )
        self._env = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            # These replace all files of the machine's own broker, even those that we leave empty.
            "RABBITMQ_CONF_ENV_FILE": self._write("rabbitmq-env.conf", ""),
            "RABBITMQ_CONFIG_FILE": self._write("rabbitmq.conf", config),
            "RABBITMQ_CONFIG_FILES": str(self._folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": self._write("advanced.config", "[].\n"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._write("enabled_plugins", f"[{','.join(plugins)}].\n"),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            # Keep the node's and rabbitmqctl's own ports closed to other machines.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ON_LOOPBACK,
            "RABBITMQ_CTL_ERL_ARGS": ON_LOOPBACK,
            "ERL_EPMD_PORT": str(self._port_mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self._port_mapper: ServerProcess | None = None
        self._process: ServerProcess | None = None

    def start(self) -> None:
        """Start the node, and wait until it takes connections.

        Raises:
            ServerFailed: it is not installed, or does not come up.
        """
        if self._port_mapper is None and not answers(self._port_mapper_port):
            # The node would start one itself, as a daemon that outlives it.
            self._port_mapper = ServerProcess([_epmd()], self._folder / "epmd", env=self._env)
            self._port_mapper.wait_until(lambda: answers(self._port_mapper_port))
        self._process = ServerProcess([executable()], self._folder / "output", env=self._env)
        self._process.wait_until(lambda: answers(self.port))
        if self._join is not None:
            self.ctl("stop_app")
            self.ctl("join_cluster", self._join.name)
            self.ctl("start_app")
            self._join = None

    def stop(self) -> None:
        """Stop the node as an operator does; its data stay."""
        if self._process is not None:
            self._process.stop()
            self._ended()

    def kill(self) -> None:
        """Kill the node; its data stay, except queues that are not :meth:`on_disk` yet."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def on_disk(self, queue: str) -> bool:
        """Whether a quorum queue would survive :meth:`kill`.

        RabbitMQ writes the list of its Raft logs every half second (``ra_directory``, a dets
        table). A queue that was declared since then exists after a kill, and answers nothing.
        """
        # Its Raft cluster's name, an Erlang atom, preceded by its length.
        name = f"%2F_{queue}".encode()
        atom = bytes([len(name)]) + name
        return any(atom in file.read_bytes() for file in self._folder.glob("data/*/quorum/*/names.dets"))

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl``; returns its output."""
        command = Path(executable()).with_name("rabbitmqctl")
        done = subprocess.run(
            [command, "-q", *arguments], env=self._env, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            raise ServerFailed(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    @contextmanager
    def policy(self, queue: str, **definition: int | str) -> Iterator[None]:
        """Give a queue a policy within; ``_`` stands for ``-`` in the names of its definition."""
        name = f"policy-{queue}"
        text = json.dumps({key.replace("_", "-"): value for key, value in definition.items()})
        self.ctl("set_policy", name, f"^{re.escape(queue)}$", text, "--apply-to", "queues")
        try:
            yield
        finally:
            self.ctl("clear_policy", name)

    def full(self, queue: str, length: int) -> AbstractContextManager[None]:
        """Limit a queue to about this many messages within."""
        return self.policy(queue, max_length=length, overflow="reject-publish")

    def close(self) -> None:
        """End the node and its port mapper, and remove the folder."""
        self.kill()
        if self._port_mapper is not None:
            self._port_mapper.kill()
            self._port_mapper = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ended(self) -> None:
        """Wait for the node itself, a child of the script that we started: its ports are free at
        its end.
        """
        self._process = None
        wait_until(lambda: not answers(self.port) and not answers(self._distribution), "the end of RabbitMQ")

    def _write(self, name: str, content: str) -> str:
        path = self._folder / name
        path.write_text(content)
        return str(path)


def executable() -> str:
    """The path of ``rabbitmq-server``: RABBITMQ_SERVER, or where it is installed.

    Raises:
        ServerFailed: it is not there.
    """
    for candidate in (os.environ.get("RABBITMQ_SERVER"), *SERVER):
        if candidate and (found := shutil.which(candidate)):
            return found
    raise ServerFailed("rabbitmq-server is not on this machine: 'make servers' says what to do")


def _epmd() -> str:
    """The path of Erlang's port mapper, which is not always on the search path."""
    if found := shutil.which("epmd"):
        return found
    show_root = ["erl", "-noshell", "-eval", "io:put_chars(code:root_dir()), halt()."]
    root = subprocess.run(show_root, capture_output=True, text=True, check=True, timeout=300).stdout
    for path in Path(root).glob("erts-*/bin/epmd"):
        return str(path)
    raise ServerFailed("Erlang's epmd is not on this machine")
