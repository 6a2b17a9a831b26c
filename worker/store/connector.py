"""Connections to a PostgreSQL server, as asyncpg makes them: to which host, with which settings,
and how they are kept alive. Knows no engine.
"""

import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from weakref import WeakSet

import asyncpg
from sqlalchemy.engine import URL

from worker.store.errors import refuses_settings

# How long a host may take to let us in; half of it where there are others to try. Seconds.
CONNECT_TIMEOUT = 10.0
# A statement that takes longer is cancelled. Longer than the locks that maintenance holds for
# moments; seconds.
STATEMENT_TIMEOUT = 60.0
# How soon and how often an idle connection is asked for a sign of life, in seconds; and for how
# many milliseconds what was sent may go without one. So a firewall neither forgets a connection nor
# drops it unnoticed.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}

# Where PostgreSQL's warning comes from when a commit waits for its synchronous standby no longer:
# what it committed is on this server only. (The text of a warning may be translated.)
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
# On which of our connections that was.
local_only: "WeakSet[asyncpg.Connection[Any]]" = WeakSet()

# Never plan to read a whole table where an index is at hand: all that is asked here has one. A plan
# is kept for as long as the session, also that by which PostgreSQL checks a foreign key. One made
# while the table was empty would read all of it for each row, until the table is analyzed. (Where a
# table is read whole all the same, this makes the plan look costly enough to be compiled: hence the
# second. Not "jit", which asyncpg sets for the session where it finds it off for the transaction.)
PLANNING = {"enable_seqscan": "off", "jit_above_cost": "-1"}

# What SQLAlchemy's dialect or asyncpg take as numbers. All else that stands in a URL is text.
_NUMBERS: dict[str, type[int] | type[float]] = {
    "timeout": float,
    "command_timeout": float,
    "prepared_statement_cache_size": int,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}


@dataclass(frozen=True)
class Connector:
    """Connects to the first of some hosts that lets us in.

    Attributes:
        hosts: name or folder of a socket, and port; None for asyncpg's default.
        arguments: of ``asyncpg.connect``.
        settings: of each session.
    """

    hosts: tuple[tuple[str | None, int | None], ...]
    arguments: dict[str, Any]
    settings: dict[str, str]

    async def __call__(self) -> Any:
        timeout = CONNECT_TIMEOUT / min(len(self.hosts), 2)
        arguments = {"timeout": timeout, **self.arguments, "server_settings": self.settings}
        failed: Exception | None = None
        for host, port in self.hosts:
            try:
                connection = await asyncpg.connect(host=host, port=port, **arguments)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
                failed = error
            else:
                # asyncpg has no setting for it, and no public way to the socket.
                _keep_alive(connection._transport.get_extra_info("socket"))
                connection.add_log_listener(_note_local_commit)
                return connection
        assert failed is not None
        raise failed


def _note_local_commit(connection: Any, message: Any) -> None:
    """The server says so and nothing else: the statement has succeeded. asyncpg tells of it before
    it hands over the result.
    """
    if message.server_source_function == _WAIT_FOR_STANDBY:
        local_only.add(connection)


def _keep_alive(there: socket.socket) -> None:
    if there.family in (socket.AF_INET, socket.AF_INET6):
        there.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):  # not on every system
                there.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def read_url(url: URL) -> tuple[Connector, int]:
    """What a URL asks for; and how many prepared statements a connection may keep."""
    _, options = url.get_dialect()().create_connect_args(url)
    host, port = options.pop("host", None), options.pop("port", None)
    hosts = tuple(zip(host, port, strict=True)) if isinstance(host, list) else ((host, port),)
    taken = {name: options.pop(name) for name in ("user", "password", "database") if name in options}
    numbers = {name: number(options.pop(name)) for name, number in _NUMBERS.items() if name in options}
    arguments = {"command_timeout": STATEMENT_TIMEOUT, **taken, **numbers}
    cache_size = arguments.pop("prepared_statement_cache_size", 100)
    # The rest as libpq writes it, which asyncpg reads from a URL only: what concerns TLS, and
    # settings of the session.
    query = {"sslmode" if name == "ssl" else name: value for name, value in options.items()}
    if len(hosts) > 1:
        query = {"target_session_attrs": "read-write", **query}  # the others are standbys, mostly
    if query:
        arguments["dsn"] = f"postgresql:///?{urlencode(query)}"
    settings = {"application_name": "flow-run-worker", **PLANNING}
    settings = {name: value for name, value in settings.items() if name not in query}
    return Connector(hosts, arguments, settings), cache_size


async def is_pooler(connect: Connector) -> bool:
    """Whether another than the server answers: it takes no settings, or lends us a session that is
    not the one that was opened for us.
    """
    try:
        connection = await connect()
    except asyncpg.PostgresError as error:
        if refuses_settings(error):
            return True
        raise
    try:
        return bool(await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid())
    finally:
        connection.terminate()
