"""File systems in place of docker-compose.yml's images, as there is no image registry: the worker's
image is built, the others are made of Debian's and Python's packages.

Each starts as its image does. Their versions differ, as deploy/README.md lists.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.prefect_server import VERSION, install
from tests.support.container import Image
from tests.support.postgresql import executables
from tests.support.processes import ServerFailed
from tests.support.worker_process import ROOT

# This machine's own file system, with its installed programs.
MACHINE = Path("/")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The start of PostgreSQL's image. It makes a cluster if there is none, with a password for network
# connections. Then it runs the scripts mounted for the first start.
_POSTGRES = r"""
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username=postgres --pwfile=<(echo "${POSTGRES_PASSWORD:?}") --no-sync >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl -w -o "-c listen_addresses=''" start
    export POSTGRES_USER=postgres
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh) if [ -x "$file" ]; then "$file"; else . "$file"; fi ;;
            *.sql) psql -v ON_ERROR_STOP=1 -U postgres -f "$file" ;;
        esac
    done
    pg_ctl -w -m fast stop
fi
exec "$@"
"""


@dataclass(frozen=True)
class StandIns:
    """The file system for each name of an image.

    Attributes:
        worker: the built image.
        prometheus: the folder of Prometheus's programs.
    """

    worker: Image
    prometheus: Path

    def __call__(self, name: str) -> Image:
        match name.partition(":"):
            case "flow-run-worker", _, "":
                return self.worker
            case "rabbitmq", _, tag if tag.endswith("-management"):
                return rabbitmq()
            case "postgres", _, _:
                return postgres()
            case "prefecthq/prefect", _, tag if tag.startswith(f"{VERSION}-"):
                return prefect()
            case "prom/prometheus", _, _:
                return prometheus(self.prometheus)
        raise ServerFailed(f"nothing stands for the image {name}")


def postgres() -> Image:
    """``postgres``: the PostgreSQL that is installed here."""
    programs = executables()
    return Image(
        MACHINE,
        entrypoint=("bash", "-c", _POSTGRES, "docker-entrypoint"),
        command=("postgres", "-c", "listen_addresses=*"),
        environment={"PATH": f"{programs}:{PATH}", "PGDATA": "/var/lib/postgresql/data", "LANG": "C.UTF-8"},
        stop_signal="SIGINT",
        steps="mkdir -p /docker-entrypoint-initdb.d /var/lib/postgresql/data && "
        "chown postgres:postgres /var/lib/postgresql/data && chmod 700 /var/lib/postgresql/data",
    )


def rabbitmq() -> Image:
    """``rabbitmq``, with the management plugin: Debian 13's RabbitMQ 4 if it has been unpacked
    (``make test-rabbitmq4``), or the installed one.
    """
    tree = ROOT / ".cache/rabbitmq-4/tree"
    unpacked = (tree.parent / "installed").exists()
    return Image(
        tree.resolve() if unpacked else MACHINE,
        command=("rabbitmq-server",),
        environment={"PATH": f"/usr/lib/rabbitmq/bin:{PATH}", "HOME": "/var/lib/rabbitmq", "LANG": "C.UTF-8"},
        # Remove the settings of the machine's own broker.
        steps="rm -rf /etc/rabbitmq/* /var/lib/rabbitmq && mkdir /var/lib/rabbitmq && "
        "chown rabbitmq:rabbitmq /etc/rabbitmq /var/lib/rabbitmq",
    )


def prefect() -> Image:
    """``prefecthq/prefect``: the reference version of Prefect."""
    programs = install(VERSION).resolve()
    return Image(
        MACHINE,
        environment={"PATH": f"{programs}:{PATH}", "LANG": "C.UTF-8"},
        shared=(programs.parent, Path(sys.base_prefix)),
    )


def prometheus(programs: Path) -> Image:
    """``prom/prometheus``, from the folder of its programs."""
    return Image(
        MACHINE,
        entrypoint=(str(programs / "prometheus"),),
        command=("--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"),
        user="nobody",
        workdir="/prometheus",
        steps="mkdir -p /prometheus /etc/prometheus && chown nobody:nogroup /prometheus",
        shared=(programs,),
    )


def prepare() -> None:
    """Install the programs that run containers, and those that run inside.

    Raises:
        ServerFailed: they can't be installed.
    """
    servers = ("rabbitmq", "postgresql", "dnsmasq", "socat", "wget")
    done = subprocess.run([ROOT / "tests/support/servers.sh", *servers], capture_output=True, text=True)
    if done.returncode:
        raise ServerFailed(done.stderr)
