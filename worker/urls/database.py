"""Reads PostgreSQL URLs in the forms of libpq, JDBC, SQLAlchemy and hosting plans. Parameters that
asyncpg supports get one form, all others a remedy. Connects to nothing.

The parameters are those of libpq (PostgreSQL 18's manual, 32.1.2) and the common ones of JDBC's
driver, Prisma, Rails and pgx. Any other name is a setting of the session: the server refuses
unknown ones.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote

from worker.urls.broker import ENCODE
from worker.urls.password_file import PASSWORD_FILE

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

# Translates a parameter's value, or raises ValueError with the remedy.
_Rule = Callable[[str], Mapping[str, str]]

_TRUE, _FALSE = ("1", "true", "on", "yes"), ("0", "false", "off", "no")


def _kept(*values: str, name: str = "") -> _Rule:
    """Keep the parameter, under another name if one is given. With values, accept only these."""

    def rule(value: str) -> Mapping[str, str]:
        if values and value not in values:
            raise ValueError(f"must be {', '.join(values[:-1])} or {values[-1]}")
        return {name: value}

    return rule


def _number(name: str, *, zero: bool = True, whole: bool = True) -> _Rule:
    """A number. Without ``zero``, zero and negative numbers mean the default."""

    def rule(value: str) -> Mapping[str, str]:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not abs(number) < 1e9 or (whole and number != int(number)):
            raise ValueError(f"must be a {'whole ' if whole else ''}number")
        text = str(int(number)) if whole else value
        return {name: text} if zero or number > 0 else {}

    return rule


def _switch(on: Mapping[str, str], off: Mapping[str, str]) -> _Rule:
    """One parameter for true, another for false."""

    def rule(value: str) -> Mapping[str, str]:
        if value.lower() not in _TRUE + _FALSE:
            raise ValueError("must be true or false")
        return on if value.lower() in _TRUE else off

    return rule


def _only(*values: str, remedy: str) -> _Rule:
    """Accept these values, which change nothing. Refuse all others with the remedy."""

    def rule(value: str) -> Mapping[str, str]:
        if value.lower() not in values:
            raise ValueError(remedy)
        return {}

    return rule


def _refused(remedy: str) -> _Rule:
    return _only(remedy=remedy)


def _target(value: str) -> Mapping[str, str]:
    if value not in ("any", "read-write", "primary"):
        raise ValueError("must be any, read-write or primary, as the worker writes")
    return {"target_session_attrs": value}


def _target_of_jdbc(value: str) -> Mapping[str, str]:
    return _target({"master": "primary"}.get(value, value))


def _threshold(value: str) -> Mapping[str, str]:
    """JDBC's ``prepareThreshold``: 0 means unnamed statements."""
    return {} if _number("n", zero=False)(value) else _NO_NAMES


def _ssl(value: str) -> Mapping[str, str]:
    """SQLAlchemy's name of ``sslmode``. In JDBC and elsewhere it is true or false."""
    if value not in _SSL_MODES:
        raise ValueError(f"must be {', '.join(_SSL_MODES)}; 'true' can mean require, or {_VERIFY}")
    return {"sslmode": value}


_LEAVE_OUT = "means nothing here: leave it out"
_VERIFY = "sslmode=verify-full with sslrootcert=FILE or sslrootcert=system"
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_NO_NAMES = {"prepared_statement_cache_size": "0"}
_REQUIREMENT = f"can't be demanded by asyncpg: leave it out, and have the server verified, by {_VERIFY}"
_LIBPQ: dict[str, _Rule] = {
    "passfile": _kept(),
    "require_auth": _refused(_REQUIREMENT),
    "channel_binding": _kept("disable", "prefer", "require"),
    "connect_timeout": _number("timeout", zero=False),
    "client_encoding": _only(
        *("utf8", "utf-8", "unicode", "auto"), remedy="the worker speaks UTF8 alone: leave it out"
    ),
    "options": _kept(),
    "application_name": _kept(),
    "fallback_application_name": _kept(name="application_name"),
    "keepalives": _switch({"keepalives": "1"}, {"keepalives": "0"}),
    "keepalives_idle": _number("keepalives_idle"),
    "keepalives_interval": _number("keepalives_interval"),
    "keepalives_count": _number("keepalives_count"),
    "tcp_user_timeout": _number("tcp_user_timeout"),
    "replication": _only(*_FALSE, remedy="the worker needs an ordinary session: leave it out"),
    "gssencmode": _only(
        *("disable", "prefer", "allow"),
        remedy="asyncpg can't encrypt by GSSAPI: leave it out, and write sslmode=require or verify-full",
    ),
    "sslmode": _kept(*_SSL_MODES),
    "requiressl": _switch({"sslmode": "require"}, {}),
    "sslnegotiation": _kept("postgres", "direct"),
    # libpq compresses only if the server and OpenSSL do: none has since 2016.
    "sslcompression": _only(*_TRUE, *_FALSE, remedy=_LEAVE_OUT),
    "sslcert": _kept(),
    "sslkey": _kept(),
    "sslkeylogfile": _refused("name the file by the variable SSLKEYLOGFILE of the environment"),
    "sslpassword": _kept(),
    "sslcertmode": _only(
        "allow",
        remedy="asyncpg sends the certificate of sslcert, if the server asks: name it, or leave it out",
    ),
    "sslrootcert": _kept(),
    "sslcrl": _kept(),
    "sslcrldir": _refused("asyncpg reads one file: name it by sslcrl"),
    "sslsni": _only(*_TRUE, remedy="asyncpg always sends the server's name: leave it out"),
    "requirepeer": _refused(_REQUIREMENT),
    "ssl_min_protocol_version": _kept(*_TLS),
    "ssl_max_protocol_version": _kept(*_TLS),
    "min_protocol_version": _only("3.0", remedy="asyncpg speaks protocol 3.0: leave it out"),
    "max_protocol_version": _only(
        *("3.0", "3.2", "latest"), remedy="asyncpg speaks protocol 3.0: leave it out"
    ),
    "krbsrvname": _kept(),
    "gsslib": _kept("gssapi", "sspi"),
    "gssdelegation": _only(*_FALSE, remedy="asyncpg can't delegate: leave it out"),
    "scram_client_key": _refused("asyncpg takes no key in place of the password: give the password"),
    "scram_server_key": _refused("asyncpg takes no key in place of the password: give the password"),
    "service": _kept(),
    "servicefile": _kept(),
    "target_session_attrs": _target,
    "load_balance_hosts": _kept("disable", "random"),
    **dict.fromkeys(
        ("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope", "oauth_ca_file"),
        _refused("asyncpg has no login by OAuth: give the user a password, WORKER_DATABASE_PASSWORD_FILE"),
    ),
}

_OTHERS: dict[str, _Rule] = {
    PASSWORD_FILE: _kept(),
    # asyncpg's and SQLAlchemy's
    "ssl": _ssl,
    "timeout": _number("timeout", zero=False, whole=False),
    "command_timeout": _number("command_timeout", whole=False),
    "prepared_statement_cache_size": _number("prepared_statement_cache_size"),
    "statement_cache_size": _number("statement_cache_size"),
    "max_cached_statement_lifetime": _number("max_cached_statement_lifetime"),
    "max_cacheable_statement_size": _number("max_cacheable_statement_size"),
    "direct_tls": _refused("write sslnegotiation=direct"),
    # JDBC's (jdbc.postgresql.org, "Connection parameters")
    "ApplicationName": _kept(name="application_name"),
    "currentSchema": _kept(name="search_path"),
    "connectTimeout": _number("timeout", zero=False),
    "loginTimeout": _number("timeout", zero=False),
    "socketTimeout": _number("command_timeout", zero=False),
    "tcpKeepAlive": _switch({"keepalives": "1"}, {"keepalives": "0"}),
    "targetServerType": _target_of_jdbc,
    "loadBalanceHosts": _switch({"load_balance_hosts": "random"}, {}),
    "prepareThreshold": _threshold,
    "preparedStatementCacheQueries": _number("prepared_statement_cache_size"),
    "readOnly": _only(*_FALSE, remedy="the worker writes: leave it out"),
    "gssEncMode": _only(
        *("disable", "prefer", "allow"), remedy="asyncpg can't encrypt by GSSAPI: write sslmode=require"
    ),
    "channelBinding": _kept("disable", "prefer", "require", name="channel_binding"),
    "sslNegotiation": _kept("postgres", "direct", name="sslnegotiation"),
    "requireAuth": _refused(_REQUIREMENT),
    "kerberosServerName": _kept(name="krbsrvname"),
    **dict.fromkeys(("sslfactory", "sslhostnameverifier"), _refused(f"is Java's: write {_VERIFY}")),
    **dict.fromkeys(
        ("socketFactory", "authenticationPluginClassName", "sslpasswordcallback"),
        _refused("is Java's: give host and password here, or a file by WORKER_DATABASE_PASSWORD_FILE"),
    ),
    **dict.fromkeys(
        (
            *("adaptiveFetch", "autosave", "binaryTransfer", "cleanupSavepoints", "defaultRowFetchSize"),
            *("preferQueryMode", "reWriteBatchedInserts", "stringtype", "assumeMinServerVersion"),
            *("allowEncodingChanges", "logUnclosedConnections", "loggerLevel", "hostRecheckSeconds"),
            *("receiveBufferSize", "sendBufferSize", "logServerErrorDetail", "cancelSignalTimeout"),
            # connection pools' (any language): a worker has two connections
            *("pool", "pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping"),
            *("connection_limit", "pool_max_conns", "pool_min_conns", "minPoolSize", "maxPoolSize"),
            *("async_fallback", "default_query_exec_mode", "statement_cache_capacity", "socket_timeout"),
        ),
        _refused(_LEAVE_OUT),
    ),
    # Prisma's, Rails' and node's
    "schema": _kept(name="search_path"),
    "pgbouncer": _switch(_NO_NAMES, {}),
    "prepared_statements": _switch({}, _NO_NAMES),
    "encoding": _only("utf8", "utf-8", "unicode", remedy="the worker speaks UTF8 alone: leave it out"),
    "uselibpqcompat": _only(*_TRUE, *_FALSE, remedy="must be true or false"),
}
_RULES = _LIBPQ | _OTHERS
# Parameters for parts of the URL itself.
_PARTS = ("host", "hostaddr", "port", "dbname", "database", "user", "password")
_BY_LOWER_CASE = {name.lower(): name for name in (*_RULES, *_PARTS)}

# "scheme://user:password@" as SQLAlchemy reads it, several hosts, and the rest.
_SEVERAL_HOSTS = re.compile(
    r"(postgres\w*(?:\+\w+)?://(?:[^:/]*(?::[^@]*)?@)?)([^/?@]*,[^/?@]*)(.*)", re.DOTALL
)
_HOST = re.compile(r"(?:\[(?P<ipv6>[^]]+)\]|(?P<name>[^:]*))(?::(?P<port>\d*))?")


def read_database_url(text: str) -> "URL":
    """Read a database URL. PostgreSQL's gets one form: its query has the parameters of the worker's
    connector, and ``host`` and ``port`` for several hosts or a socket's folder.

    Raises:
        ValueError: the URL can't be read, or a parameter is not supported. The message has no
            password.
    """
    # Commands that need no database import this module with the settings.
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    text = text.removeprefix("jdbc:")
    several = _SEVERAL_HOSTS.fullmatch(text)
    try:
        url = make_url(several[1] + several[3] if several else text)
    except (ArgumentError, ValueError):
        raise ValueError(f"can't be read as a URL {ENCODE}") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        return url
    # The last of several parameters with one name counts, as in libpq. Hosts are a list.
    given = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    in_authority = several[2].split(",") if several else [url.host and _bracketed(url)]
    hosts = _hosts(_listed(url, "host") or in_authority, _listed(url, "port"), given.get("hostaddr"))
    parts = {name: given.pop(name, None) for name in _PARTS}
    query = _query(given)
    host, port = hosts[0]
    if len(hosts) > 1 or (host or "").startswith("/"):
        query["host"] = ",".join(host or "" for host, _ in hosts)
        query["port"] = ",".join(str(port or "") for _, port in hosts)
        host, port = None, None
    return URL.create(
        "postgresql+asyncpg",
        username=parts["user"] or url.username,
        password=parts["password"] or url.password,
        host=host,
        port=port,
        database=parts["dbname"] or parts["database"] or url.database or None,
        query=query,
    )


def _query(given: Mapping[str, str]) -> dict[str, str]:
    """The query in one form."""
    query: dict[str, str] = {}
    for name, value in given.items():
        if name in _RULES:
            try:
                became = {each or name: text for each, text in _RULES[name](value).items()}
            except ValueError as error:
                raise ValueError(f"has '{name}' behind the '?': {error}") from None
            # A parameter under its own name overrides a translated one.
            query = {**became, **query} if name not in became else {**query, **became}
        elif name.lower() in _BY_LOWER_CASE:
            raise ValueError(f"has '{name}' behind the '?': it is '{_BY_LOWER_CASE[name.lower()]}' here")
        else:
            query[name] = value
    if query.pop("channel_binding", "") == "require":
        # asyncpg has no channel binding. Verifying the certificate also keeps strangers out.
        if query.get("sslmode", "require") not in ("require", "verify-ca", "verify-full"):
            raise ValueError(f"has 'channel_binding' behind the '?': it needs TLS, as by {_VERIFY}")
        query = {"sslrootcert": "system", **query, "sslmode": "verify-full"}
    if query.get("sslrootcert") == "system":
        if query.setdefault("sslmode", "verify-full") != "verify-full":
            raise ValueError("has 'sslrootcert=system' behind the '?': it needs sslmode=verify-full")
        if "sslcrl" in query:
            raise ValueError("has 'sslcrl' behind the '?': it needs a file as sslrootcert")
    return query


def _listed(url: "URL", name: str) -> list[str]:
    """Hosts or ports of the query: separated by commas, or one parameter each."""
    value = url.query.get(name, ())
    return value.split(",") if isinstance(value, str) else list(value)


def _bracketed(url: "URL") -> str:
    host = f"[{url.host}]" if url.host and ":" in url.host else url.host or ""
    return f"{host}:{url.port}" if url.port else host


def _hosts(
    hosts: Sequence[str | None], ports: Sequence[str], address: str | None
) -> list[tuple[str | None, int | None]]:
    if address is not None:
        if any(hosts):
            raise ValueError("has 'hostaddr' behind the '?': name the address as the host, and leave it out")
        hosts = address.split(",")
    if len(ports) not in (0, 1, len(hosts)):
        raise ValueError("has another number of ports than of hosts")
    found: list[tuple[str | None, int | None]] = []
    for index, each in enumerate(hosts):
        name, port = _host(unquote(each or ""))
        if ports:
            port = ports[index % len(ports)] or port
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("has no usable port")
        found.append((name or None, int(port) if port else None))
    return found


def _host(text: str) -> tuple[str, str]:
    """A host's name, or a socket's folder, and its port."""
    match = None if text.startswith("/") else _HOST.fullmatch(text)
    if match is None:  # a folder, or an IPv6 address without brackets
        return text, ""
    return match["ipv6"] or match["name"], match["port"] or ""
