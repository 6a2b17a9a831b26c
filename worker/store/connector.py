"""Connections to a PostgreSQL server, as asyncpg makes them: to which host, with which settings,
and how they are kept alive. Knows no engine.
"""

import os
import random
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from weakref import WeakSet

import asyncpg
from sqlalchemy.engine import URL

from worker.contract.errors import Fault
from worker.store.errors import refuses_settings
from worker.urls.password_file import PASSWORD_FILE, PasswordUnreadable, read_password

# How long a host may take to let us in; half of it where there are others to try. Seconds.
CONNECT_TIMEOUT = 10.0
# A statement that takes longer is cancelled. Longer than the locks that maintenance holds for
# moments; seconds.
STATEMENT_TIMEOUT = 60.0
# How soon and how often an idle connection is asked for a sign of life, in seconds; and for how
# many milliseconds what was sent may go without one. So a firewall neither forgets a connection nor
# drops it unnoticed.
KEEPALIVE = {
    "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 3,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 10_000,
}

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

# The same by libpq's names, whose numbers are of the same units.
_KEEPALIVE_NAMES = {
    "keepalives": "SO_KEEPALIVE",
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}

# Arguments of asyncpg. All else that stands in a URL's query is written as libpq has it.
_ARGUMENTS: dict[str, type[int] | type[float] | type[str]] = {
    "timeout": float,
    "command_timeout": float,
    "prepared_statement_cache_size": int,  # SQLAlchemy's, to be exact
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
    "service": str,
    "servicefile": str,
}
# Files that asyncpg reads at each connect; it does not say which one it could not.
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl")


@dataclass(frozen=True)
class Connector:
    """Connects to the first of some hosts that lets us in.

    Attributes:
        hosts: name or folder of a socket, and port; None for asyncpg's default.
        arguments: of ``asyncpg.connect``.
        settings: of each session.
        query: what asyncpg reads from a URL only, as libpq writes it: of TLS, and settings of the
            session.
        keepalive: options of the socket.
        password_file: has the password; it is read at each connect.
        shuffled: the hosts are tried in an order that is drawn.
    """

    hosts: tuple[tuple[str | None, int | None], ...]
    arguments: dict[str, Any]
    settings: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)
    keepalive: dict[str, int] = field(default_factory=dict)
    password_file: str | None = None
    shuffled: bool = False

    async def __call__(self) -> Any:
        """Raises :class:`Fault` for a file that can't be read, else as asyncpg does."""
        timeout = CONNECT_TIMEOUT / min(len(self.hosts), 2)
        arguments = {"timeout": timeout, **self.arguments, "server_settings": self.settings}
        arguments |= self._from_files()
        failed: Exception | None = None
        for host, port in random.sample(self.hosts, len(self.hosts)) if self.shuffled else self.hosts:
            try:
                connection = await asyncpg.connect(host=host, port=port, **arguments)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
                failed = error
            else:
                # asyncpg has no setting for it, and no public way to the socket.
                _keep_alive(connection._transport.get_extra_info("socket"), self.keepalive)
                connection.add_log_listener(_note_local_commit)
                return connection
        assert failed is not None
        raise failed

    def _from_files(self) -> dict[str, Any]:
        """The arguments that are in files, as these are now."""
        query, found = dict(self.query), dict[str, Any]()
        for name in _FILES:
            if (path := query.get(name, "system")) != "system" and not os.access(path, os.R_OK):
                raise Fault(f"The file '{path}', which is the {name} of the database's URL, can't be read")
        if self.password_file is not None:
            try:
                found["password"] = read_password(self.password_file)
            except PasswordUnreadable as error:
                raise Fault(f"No login at PostgreSQL: {error}") from error
        if query.get("sslrootcert") == "system":
            found["ssl"] = _trusting_the_system(query)
        if query:
            found["dsn"] = f"postgresql:///?{urlencode(query)}"
        return found


def _trusting_the_system(query: dict[str, str]) -> ssl.SSLContext:
    """TLS with a server whose certificate the system's authorities have signed; takes what concerns
    TLS out of the query.
    """
    asked = {name: query.pop(name) for name in list(query) if name.startswith("ssl")}
    context = ssl.create_default_context()
    if "sslcert" in asked:
        context.load_cert_chain(asked["sslcert"], asked.get("sslkey"), lambda: asked.get("sslpassword", ""))
    for name in ("minimum_version", "maximum_version"):
        if version := asked.get(f"ssl_{name[:3]}_protocol_version"):
            setattr(context, name, ssl.TLSVersion[version.replace(".", "_")])
    if "sslnegotiation" in asked:
        query["sslnegotiation"] = asked["sslnegotiation"]
    return context


def _note_local_commit(connection: Any, message: Any) -> None:
    """The server says so and nothing else: the statement has succeeded. asyncpg tells of it before
    it hands over the result.
    """
    if message.server_source_function == _WAIT_FOR_STANDBY:
        local_only.add(connection)


def _keep_alive(there: socket.socket, options: dict[str, int]) -> None:
    if there.family in (socket.AF_INET, socket.AF_INET6):
        for option, value in options.items():
            if hasattr(socket, option):  # not on every system
                level = socket.SOL_SOCKET if option == "SO_KEEPALIVE" else socket.IPPROTO_TCP
                there.setsockopt(level, getattr(socket, option), value)


def read_url(url: URL) -> tuple[Connector, int]:
    """Read a URL that has the form of ``read_database_url``. Returns also how many prepared
    statements a connection may keep.
    """
    query = {name: str(value) for name, value in url.query.items()}
    hosts = [(url.host, url.port)]
    if "host" in query:
        names, ports = query.pop("host").split(","), query.pop("port").split(",")
        hosts = [(name or None, int(port) if port else None) for name, port in zip(names, ports, strict=True)]
    if len(hosts) > 1:
        query = {"target_session_attrs": "read-write", **query}  # the others are standbys, mostly
    login = {"user": url.username, "password": url.password, "database": url.database}
    taken = {name: kind(query.pop(name)) for name, kind in _ARGUMENTS.items() if name in query}
    cache_size = int(taken.pop("prepared_statement_cache_size", 100))
    arguments = {"command_timeout": STATEMENT_TIMEOUT, **login, **taken}
    # As in libpq, 0 and less mean the system's default.
    own = {option: int(query.pop(name)) for name, option in _KEEPALIVE_NAMES.items() if name in query}
    keepalive = {option: value for option, value in (KEEPALIVE | own).items() if value > 0}
    if "SO_KEEPALIVE" not in keepalive:
        keepalive = {name: value for name, value in keepalive.items() if name == "TCP_USER_TIMEOUT"}
    password_file = query.pop(PASSWORD_FILE, None)
    shuffled = query.pop("load_balance_hosts", "disable") == "random"
    settings = {"application_name": "flow-run-worker", **PLANNING}
    settings = {name: value for name, value in settings.items() if name not in query}
    connector = Connector(tuple(hosts), arguments, settings, query, keepalive, password_file, shuffled)
    return connector, cache_size


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
