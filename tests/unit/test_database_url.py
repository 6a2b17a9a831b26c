"""PostgreSQL URLs of other programs: the result of each parameter, or its refusal."""

import ctypes
import ctypes.util

import pytest

from worker.settings import SettingsError, load_settings
from worker.store.connector import KEEPALIVE, STATEMENT_TIMEOUT, read_url
from worker.urls.database import _RULES, read_database_url


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://host/db", (("host", None),)),
        ("postgres://host:99/db", (("host", 99),)),
        ("postgresql+psycopg2://host/db", (("host", None),)),
        ("postgresql+psycopg://host/db", (("host", None),)),
        ("jdbc:postgresql://host:99/db", (("host", 99),)),
        ("postgresql://[::1]:99/db", (("::1", 99),)),
        ("postgresql:///db", ((None, None),)),
        ("postgresql:///db?host=/run/postgresql", (("/run/postgresql", None),)),
        ("postgresql:///db?host=/cloudsql/project:region:name", (("/cloudsql/project:region:name", None),)),
        ("postgresql://%2Frun%2Fpostgresql/db", (("/run/postgresql", None),)),
        ("postgresql://one,two/db", (("one", None), ("two", None))),
        ("postgresql://one:1,two:2/db", (("one", 1), ("two", 2))),
        ("postgresql://user:pass,word@one:1,[::1]:2/db?sslmode=prefer", (("one", 1), ("::1", 2))),
        ("postgresql:///db?host=one:1&host=two:2", (("one", 1), ("two", 2))),
        ("postgresql:///db?host=one,two&port=1,2", (("one", 1), ("two", 2))),
        ("postgresql:///db?host=one,two&port=1", (("one", 1), ("two", 1))),
        ("postgresql://one/db?hostaddr=", (("one", None),)),
        ("postgresql:///db?hostaddr=192.0.2.1&port=99", (("192.0.2.1", 99),)),
        ("postgresql://host:99/db?host=other", (("other", None),)),
    ],
)
def test_hosts(url: str, hosts: object) -> None:
    assert read_url(read_database_url(url))[0].hosts == hosts


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("postgresql://user:p%40ss@host/db%20name", ("user", "p@ss", "db name")),
        ("postgresql://host/?user=user&password=p%40ss&dbname=db", ("user", "p@ss", "db")),
        ("postgresql://me:mine@host/db?user=user&password=other", ("user", "other", "db")),
        ("postgresql://host", (None, None, None)),
    ],
)
def test_the_login_stands_in_its_place_and_is_hidden(url: str, login: tuple[str | None, ...]) -> None:
    parsed = read_database_url(url)
    assert (parsed.username, parsed.password, parsed.database) == login
    assert "p@ss" not in parsed.render_as_string(hide_password=True)
    arguments = read_url(parsed)[0].arguments
    assert (arguments["user"], arguments["password"], arguments["database"]) == login


KEPT = {**KEEPALIVE, "SO_KEEPALIVE": 1}


@pytest.mark.parametrize(
    ("query", "became"),
    [
        # as Neon, Supabase and others give them
        ("sslmode=require&channel_binding=require", {"sslmode": "verify-full", "sslrootcert": "system"}),
        (
            "sslmode=verify-full&sslrootcert=/ca.pem&channel_binding=require",
            {"sslmode": "verify-full", "sslrootcert": "/ca.pem"},
        ),
        ("channel_binding=prefer&sslmode=require", {"sslmode": "require"}),
        ("sslrootcert=system", {"sslmode": "verify-full", "sslrootcert": "system"}),
        ("options=endpoint%3Dep-cool-darkness", {"options": "endpoint=ep-cool-darkness"}),
        ("options=-c%20search_path%3Dmine", {"options": "-c search_path=mine"}),
        ("gssencmode=disable&sslsni=1&sslcompression=0&client_encoding=UTF8", {}),
        ("application_name=mine", {"application_name": "mine"}),
        ("fallback_application_name=theirs", {"application_name": "theirs"}),
        ("fallback_application_name=theirs&application_name=mine", {"application_name": "mine"}),
        ("application_name=mine&fallback_application_name=theirs", {"application_name": "mine"}),
        ("requiressl=1", {"sslmode": "require"}),
        ("requiressl=1&sslmode=verify-ca", {"sslmode": "verify-ca"}),
        ("ssl=verify-full", {"sslmode": "verify-full"}),
        ("target_session_attrs=primary", {"target_session_attrs": "primary"}),
        ("sslmode=disable&sslmode=require", {"sslmode": "require"}),
        ("passfile=/pgpass", {"passfile": "/pgpass"}),
        ("statement_timeout=5000&TimeZone=UTC", {"statement_timeout": "5000", "TimeZone": "UTC"}),
        ("min_protocol_version=3.0&max_protocol_version=latest", {}),
        # JDBC's, Prisma's, Rails'
        ("currentSchema=mine", {"search_path": "mine"}),
        ("schema=mine", {"search_path": "mine"}),
        ("ApplicationName=mine&readOnly=false", {"application_name": "mine"}),
        ("targetServerType=master", {"target_session_attrs": "primary"}),
    ],
)
def test_what_is_left_for_asyncpg_in_libpqs_words(query: str, became: dict[str, str]) -> None:
    assert read_url(read_database_url(f"postgresql://host/db?{query}"))[0].query == became


@pytest.mark.parametrize(
    ("query", "keepalive"),
    [
        ("", KEPT),
        ("keepalives=1", KEPT),
        ("keepalives=0", {"TCP_USER_TIMEOUT": 10_000}),
        ("keepalives=0&tcp_user_timeout=0", {}),
        ("keepalives_idle=60&keepalives_interval=10", {**KEPT, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10}),
        ("keepalives_count=9&tcp_user_timeout=1000", {**KEPT, "TCP_KEEPCNT": 9, "TCP_USER_TIMEOUT": 1000}),
        ("keepalives_idle=0", {name: value for name, value in KEPT.items() if name != "TCP_KEEPIDLE"}),
        ("tcpKeepAlive=true", KEPT),
        ("tcpKeepAlive=false", {"TCP_USER_TIMEOUT": 10_000}),
    ],
)
def test_keepalives(query: str, keepalive: dict[str, int]) -> None:
    assert read_url(read_database_url(f"postgresql://host/db?{query}"))[0].keepalive == keepalive


@pytest.mark.parametrize(
    ("query", "timeout", "command_timeout", "statements"),
    [
        ("", None, STATEMENT_TIMEOUT, 100),
        ("connect_timeout=5", 5.0, STATEMENT_TIMEOUT, 100),
        ("connect_timeout=0", None, STATEMENT_TIMEOUT, 100),
        ("connectTimeout=5&socketTimeout=30", 5.0, 30.0, 100),
        ("timeout=2.5&command_timeout=0.5", 2.5, 0.5, 100),
        ("prepared_statement_cache_size=0", None, STATEMENT_TIMEOUT, 0),
        ("pgbouncer=true", None, STATEMENT_TIMEOUT, 0),
        ("pgbouncer=false", None, STATEMENT_TIMEOUT, 100),
        ("prepareThreshold=0", None, STATEMENT_TIMEOUT, 0),
        ("prepareThreshold=5&preparedStatementCacheQueries=7", None, STATEMENT_TIMEOUT, 7),
        ("prepared_statements=false", None, STATEMENT_TIMEOUT, 0),
    ],
)
def test_times_and_prepared_statements(
    query: str, timeout: float | None, command_timeout: float, statements: int
) -> None:
    connector, cache_size = read_url(read_database_url(f"postgresql://host/db?{query}"))
    assert connector.arguments.get("timeout") == timeout
    assert (connector.arguments["command_timeout"], cache_size) == (command_timeout, statements)


def test_hosts_are_tried_in_an_order_that_is_drawn_where_that_is_asked_for() -> None:
    for query, shuffled in (
        ("load_balance_hosts=random", True),
        ("load_balance_hosts=disable", False),
        ("loadBalanceHosts=true", True),
        ("", False),
    ):
        assert read_url(read_database_url(f"postgresql://one,two/db?{query}"))[0].shuffled is shuffled


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("channel_binding=require&sslmode=disable", "needs TLS"),
        ("channel_binding=always", "must be disable, prefer or require"),
        ("sslrootcert=system&sslmode=require", "verify-full"),
        ("sslrootcert=system&sslcrl=/crl", "a file as sslrootcert"),
        ("gssencmode=require", "sslmode=require"),
        ("require_auth=scram-sha-256", "verify-full"),
        ("requirepeer=postgres", "verify-full"),
        ("client_encoding=latin1", "UTF8"),
        ("replication=database", "ordinary session"),
        ("target_session_attrs=standby", "the worker writes"),
        ("targetServerType=secondary", "the worker writes"),
        ("sslmode=no-verify", "disable, allow, prefer, require, verify-ca or verify-full"),
        ("ssl=true", "sslmode=verify-full"),
        ("sslMode=require", "it is 'sslmode' here"),
        ("sslcertmode=require", "sslcert"),
        ("sslcrldir=/crls", "sslcrl"),
        ("sslsni=0", "leave it out"),
        ("sslkeylogfile=/keys", "SSLKEYLOGFILE"),
        ("min_protocol_version=3.2", "3.0"),
        ("gssdelegation=1", "leave it out"),
        ("scram_client_key=hunter2", "give the password"),
        ("oauth_issuer=https://issuer", "WORKER_DATABASE_PASSWORD_FILE"),
        ("connect_timeout=soon", "a whole number"),
        ("command_timeout=long", "a number"),
        ("keepalives=perhaps", "true or false"),
        ("keepalives_idle=1.5", "a whole number"),
        ("hostaddr=192.0.2.1", "name the address as the host"),
        ("host=one,two&port=1,2,3", "another number of ports"),
        ("port=70000", "no usable port"),
        ("readOnly=true", "the worker writes"),
        ("sslfactory=org.postgresql.ssl.NonValidatingFactory", "is Java's"),
        ("reWriteBatchedInserts=true", "leave it out"),
        ("connection_limit=5", "leave it out"),
        ("direct_tls=true", "sslnegotiation=direct"),
    ],
)
def test_what_can_not_be_done_is_told_with_its_remedy(query: str, told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(database_url=f"postgresql://user:hunter2@host/db?{query}")
    assert told in str(refused.value)
    assert str(refused.value).startswith("WORKER_DATABASE_URL: ")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:///flow_runs.db", "sqlite:////data/flow_runs.db?timeout=5"]
)
def test_a_url_of_sqlite_stays_as_it_is(url: str) -> None:
    assert read_database_url(url).render_as_string(hide_password=False) == url


def test_each_parameter_of_the_installed_libpq_is_known() -> None:
    """``PQconndefaults`` lists them."""

    class Option(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_char_p) for name in ("keyword", "envvar", "compiled", "val", "label", "disp")),
            ("size", ctypes.c_int),
        )

    library = ctypes.util.find_library("pq")
    if library is None:
        pytest.skip("no libpq on this machine")
    defaults = ctypes.CDLL(library).PQconndefaults
    defaults.restype = ctypes.POINTER(Option)
    names, options, index = set[str](), defaults(), 0
    while options[index].keyword:
        names.add(options[index].keyword.decode())
        index += 1
    assert names >= {"sslmode", "channel_binding", "tcp_user_timeout"}
    assert names - {"host", "hostaddr", "port", "dbname", "user", "password"} <= _RULES.keys()
