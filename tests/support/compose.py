"""Runs docker-compose.yml like ``docker compose up``: environment, commands, users, mounts, rights,
ports, health and start order.

The caller gives the file system for each image. Unknown keys are refused, so that nothing in the
file is ignored.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.container import Container, Image, Mount, Network, Rights
from tests.support.processes import ServerFailed, wait_until

# The keys that are followed here, and those that only an engine can follow.
_FOLLOWED = {
    *("image", "command", "entrypoint", "environment", "user", "hostname", "volumes", "tmpfs", "read_only"),
    *("cap_drop", "security_opt", "ports", "depends_on", "healthcheck", "profiles", "stop_signal"),
    *("restart", "stop_grace_period"),
}
_IGNORED = {"build"}
_HEALTH = {"test", "interval", "timeout", "retries", "start_period", "disable"}

Images = Callable[[str], Image]
Services = dict[str, dict[str, Any]]


class ServiceFailed(Exception):
    """A service ended, stayed unhealthy, or can't be started; the message has its last lines."""

    def __init__(self, service: str, why: str, output: str) -> None:
        super().__init__(f"{service} {why}:\n" + "\n".join(output.splitlines()[-60:]))
        self.service = service


class Project:
    """The services of a compose file, each in a container, on a network of their own.

    Args:
        file: the file's content.
        folder: the base of its relative paths.
        images: the file system for each image.
        variables: the content of ``.env``.
    """

    def __init__(
        self,
        file: Mapping[str, Any],
        folder: Path,
        images: Images,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._variables = variables or {}
        self._services: Services = interpolated(file["services"], self._variables)
        self._declared_volumes = set(file["volumes"])
        self._folder = folder
        self._images = images
        self._volumes = Path(tempfile.mkdtemp(prefix="volumes-"))
        self._volumes.chmod(0o755)
        self._containers: dict[str, Container] = {}
        self.network = Network()

    def __enter__(self) -> Self:
        try:
            self.network.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, service: str) -> Container:
        return self._containers[service]

    def up(self, *profiles: str, only: str | None = None) -> list[str]:
        """Start the services of these profiles and those without a profile, or one service, each
        after its dependencies; returns their names in start order.

        Raises:
            ServiceFailed: a service doesn't come up.
        """
        enabled = {
            name
            for name, service in self._services.items()
            if not service.get("profiles") or {*service["profiles"]} & {*profiles}
        }
        order = [name for name in self._ordered([only] if only else enabled) if name not in self._containers]
        for name in order:
            if name not in enabled and name != only:
                raise ServiceFailed(name, "is depended on, and is not in the profiles that are started", "")
            self._start(name)
        for name in order:
            ends = self._services[name].get("restart") == "no"
            self._wait_for(name, "service_completed_successfully" if ends else "service_healthy")
        return order

    def add(self, name: str, service: Mapping[str, Any]) -> None:
        """Add a service, to be started later."""
        self._services[name] = interpolated(service, self._variables)

    def down(self) -> dict[str, int]:
        """Stop the running services in reverse order; returns the exit codes of all."""
        codes = {}
        for name, container in reversed(self._containers.items()):
            service = self._services[name]
            seconds = _seconds(service.get("stop_grace_period", "10s"))
            code = container.code
            # Longer than the file says, so that a busy machine fails no test.
            codes[name] = container.stop(service.get("stop_signal"), 60 + seconds) if code is None else code
        return codes

    def close(self) -> None:
        """End everything, and remove the volumes."""
        for container in reversed(self._containers.values()):
            container.close()
        self.network.close()
        shutil.rmtree(self._volumes, ignore_errors=True)

    # -- one service

    def _start(self, name: str) -> None:
        service = self._services[name]
        unknown = service.keys() - _FOLLOWED - _IGNORED
        unknown |= service.get("healthcheck", {}).keys() - _HEALTH
        if unknown:
            raise ServiceFailed(name, f"has words that are not followed here: {sorted(unknown)}", "")
        for other, wait in service.get("depends_on", {}).items():
            self._wait_for(other, wait["condition"])
        security = set(service.get("security_opt", ()))
        if security - {"no-new-privileges:true"} or set(service.get("cap_drop", ())) - {"ALL"}:
            raise ServiceFailed(name, "has rights that are not followed here", "")
        rights = Rights(
            read_only=service.get("read_only", False),
            tmpfs=tuple(service.get("tmpfs", ())),
            drop_capabilities="ALL" in service.get("cap_drop", ()),
            no_new_privileges=bool(security),
        )
        mounts = list(self._mounts(name))
        try:
            container = Container(
                name,
                self._images(service["image"]),
                self.network,
                command=service.get("command", ()),
                entrypoint=service.get("entrypoint"),
                environment=_environment(service),
                user=service.get("user"),
                hostname=service.get("hostname"),
                mounts=mounts,
                rights=rights,
            )
        except ServerFailed as why:
            raise ServiceFailed(name, "can't be started", str(why)) from why
        self._containers[name] = container
        for port in service.get("ports", ()):
            host, published, target = port.split(":")
            self.network.publish(host, int(published), container.address, int(target))

    def _mounts(self, name: str) -> Iterator[Mount]:
        for each in self._services[name].get("volumes", ()):
            source, target, *options = each.split(":")
            if source.startswith("."):
                path = self._folder / source
                if not path.exists():
                    # An engine makes an empty folder instead, which is never meant.
                    raise ServiceFailed(name, f"mounts {source}, which is not there", "")
            elif source in self._declared_volumes:
                path = self._volumes / source
                path.mkdir(exist_ok=True)
            else:
                raise ServiceFailed(name, f"refers to undefined volume {source}", "")
            yield Mount(path.resolve(), target, read_only="ro" in options)

    def _health(self, name: str) -> list[str] | None:
        """The command of its health check; None without one."""
        service = self._services[name]
        check = service.get("healthcheck", {})
        if check.get("disable"):
            return None
        match check.get("test"):
            case None:
                return list(self._images(service["image"]).healthcheck) or None
            case ["CMD", *command]:
                return [str(each) for each in command]
            case ["CMD-SHELL", command] | (str() as command):
                return ["/bin/sh", "-c", str(command)]
            case other:
                raise ServiceFailed(name, f"has a health check that is not followed here: {other}", "")

    def _wait_for(self, name: str, condition: str) -> None:
        container = self._containers[name]
        if condition == "service_completed_successfully":
            wait_until(lambda: container.code is not None, f"the end of {name}")
            if container.code:
                raise ServiceFailed(name, f"ended with {container.code}", container.output)
        elif condition == "service_healthy":
            health = self._health(name)
            if health is None:
                raise ServiceFailed(name, "is waited for and has no health check", "")
            last = None
            for _ in _tries():
                if container.code is not None:
                    raise ServiceFailed(name, f"ended with {container.code}", container.output)
                last = container.run(health)
                if last.returncode == 0:
                    return
            said = "" if last is None else last.stdout + last.stderr
            raise ServiceFailed(name, f"does not become healthy ({said})", container.output)

    def _ordered(self, names: Any) -> list[str]:
        """These and all their dependencies, each after its own dependencies."""
        found: list[str] = []

        def visit(name: str) -> None:
            for other in self._services[name].get("depends_on", {}):
                visit(other)
            if name not in found:
                found.append(name)

        for name in self._services:
            if name in names:
                visit(name)
        return found


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """A value with its variables expanded, such as ``${NAME:-default}``."""
    if isinstance(value, dict):
        return {name: interpolated(each, variables) for name, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, variables) for each in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], value)
    return value


def _environment(service: Mapping[str, Any]) -> dict[str, str]:
    given = service.get("environment", {})
    pairs = given.items() if isinstance(given, dict) else (each.split("=", 1) for each in given)
    return {name: str(value) for name, value in pairs}


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def _tries(seconds: float = 180.0) -> Iterator[None]:
    """Repeat until the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.2)
