"""File systems that stand for the images of docker-compose.yml, as no registry of images can be
asked: the worker's own is built, the others are made of Debian's and Python's packages.

Each starts as its image does. The versions differ; the page deploy/README.md says by how much.
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

# This machine's own file system, with what is installed on it.
MACHINE = Path("/")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What PostgreSQL's image does at its start. It makes a cluster if there is none, with a password
# for whoever comes by the network. Then it runs the scripts that are mounted for that moment.
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
        worker: the image that was built.
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
    """``rabbitmq``, with the management plugin: Debian 13's RabbitMQ 4 where it has been unpacked
    (``make test-rabbitmq4``), or the one that is installed here.
    """
    tree = ROOT / ".cache/rabbitmq-4/tree"
    unpacked = (tree.parent / "installed").exists()
    return Image(
        tree.resolve() if unpacked else MACHINE,
        command=("rabbitmq-server",),
        environment={"PATH": f"/usr/lib/rabbitmq/bin:{PATH}", "HOME": "/var/lib/rabbitmq", "LANG": "C.UTF-8"},
        # Settings of the machine's own broker are none of the image's.
        steps="rm -rf /etc/rabbitmq/* /var/lib/rabbitmq && mkdir /var/lib/rabbitmq && "
        "chown rabbitmq:rabbitmq /etc/rabbitmq /var/lib/rabbitmq",
    )


def prefect() -> Image:
    """``prefecthq/prefect``: the Prefect that the answers are compared with."""
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
    """See to it that the programs are here that containers are run with, and those in them.

    Raises:
        ServerFailed: they can't be installed.
    """
    servers = ("rabbitmq", "postgresql", "dnsmasq", "socat", "wget")
    done = subprocess.run([ROOT / "tests/support/servers.sh", *servers], capture_output=True, text=True)
    if done.returncode:
        raise ServerFailed(done.stderr)
