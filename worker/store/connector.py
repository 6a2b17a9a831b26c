"""Connects to PostgreSQL by asyncpg: hosts, settings of the session, keepalive. Knows no engine."""

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

# Seconds to connect to a host. With several hosts, each gets half.
CONNECT_TIMEOUT = 10.0
# A statement is cancelled after this many seconds. Maintenance holds its locks for less.
STATEMENT_TIMEOUT = 60.0
# Probe a connection after 5 idle seconds, every 3 seconds, and close it after 3 missed answers or
# 10,000 ms with unacknowledged data. So a firewall neither forgets a connection nor drops it
# unnoticed.
KEEPALIVE = {
    "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 3,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 10_000,
}

# PostgreSQL's function that warns when a commit stops waiting for its synchronous standby: the
# commit is on this server only. (The warning's text may be translated.)
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
# The connections with such a commit.
local_only: "WeakSet[asyncpg.Connection[Any]]" = WeakSet()

# Never read a whole table: each of our statements has an index. A session keeps its plans, also
# those of PostgreSQL's foreign key checks. A plan made while the table was empty would read the
# whole table for each row, until the table is analyzed. (A sequential scan without an alternative
# gets a cost that would start the JIT compiler, so that is off too. "jit" itself can't be used:
# asyncpg sets it for the session if it is off in the transaction.)
PLANNING = {"enable_seqscan": "off", "jit_above_cost": "-1"}

# The same options by libpq's names, in the same units.
_KEEPALIVE_NAMES = {
    "keepalives": "SO_KEEPALIVE",
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}

# Arguments of asyncpg. Other names in a URL's query are libpq's.
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
# Files that asyncpg reads at each connect. Its errors don't name an unreadable file.
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl")


@dataclass(frozen=True)
class Connector:
    """Connects to the first host that accepts the connection.

    Attributes:
        hosts: name or folder of a socket, and port; None for asyncpg's default.
        arguments: of ``asyncpg.connect``.
        settings: of each session.
        query: libpq's options that asyncpg takes only in a URL: TLS, and settings of the session.
        keepalive: options of the socket.
        password_file: has the password; it is read at each connect.
        shuffled: try the hosts in random order.
    """

    hosts: tuple[tuple[str | None, int | None], ...]
    arguments: dict[str, Any]
    settings: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)
    keepalive: dict[str, int] = field(default_factory=dict)
    password_file: str | None = None
    shuffled: bool = False

    async def __call__(self) -> Any:
        """Connect. Raises :class:`Fault` for an unreadable file, and asyncpg's errors."""
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
                # asyncpg has no setting for keepalive, and no public way to the socket.
                _keep_alive(connection._transport.get_extra_info("socket"), self.keepalive)
                connection.add_log_listener(_note_local_commit)
                return connection
        assert failed is not None
        raise failed

    def _from_files(self) -> dict[str, Any]:
        """The arguments that are read from files, anew at each connect."""
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
    """A TLS context that trusts the system's authorities. Removes TLS options from ``query``."""
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
    """Note a commit without its standby. The statement itself succeeds, with this warning only.
    asyncpg calls this before it returns the result.
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
    """Read a URL as ``read_database_url`` returns it. Also returns the maximum of prepared
    statements per connection.
    """
    query = {name: str(value) for name, value in url.query.items()}
    hosts = [(url.host, url.port)]
    if "host" in query:
        names, ports = query.pop("host").split(","), query.pop("port").split(",")
        hosts = [(name or None, int(port) if port else None) for name, port in zip(names, ports, strict=True)]
    if len(hosts) > 1:
        query = {"target_session_attrs": "read-write", **query}  # most other hosts are standbys
    login = {"user": url.username, "password": url.password, "database": url.database}
    taken = {name: kind(query.pop(name)) for name, kind in _ARGUMENTS.items() if name in query}
    cache_size = int(taken.pop("prepared_statement_cache_size", 100))
    arguments = {"command_timeout": STATEMENT_TIMEOUT, **login, **taken}
    # 0 or less is the system's default, as in libpq.
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
    """True if a pooler answers: it refuses settings of the session, or the server's process is
    another than the one that greeted us.
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
