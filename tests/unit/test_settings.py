"""Settings: their sources, their error messages, and that no password is shown."""

import os
from pathlib import Path
from typing import Any

import pytest

from worker.contract.plain import PlainMessages
from worker.observability.redaction import redact
from worker.settings import Settings, SettingsError, load_settings, unknown_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without settings, and an empty folder."""
    for name in list(os.environ):
        if name.upper().startswith("WORKER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()
    assert settings.amqp_url == "amqp://guest:guest@localhost:5672/"
    assert settings.database_url == "sqlite+aiosqlite:///flow_runs.db"
    assert settings.queue == "flow-runs.create"


def test_option_goes_before_environment_before_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("WORKER_QUEUE=dotenv\nWORKER_PREFETCH=1\nWORKER_BATCH_MAX=2\nSOMETHING_ELSE=3\n")
    monkeypatch.setenv("WORKER_QUEUE", "environment")
    monkeypatch.setenv("WORKER_PREFETCH", "10")
    settings = load_settings(queue="option", prefetch=None)
    assert (settings.queue, settings.prefetch, settings.batch_max) == ("option", 10, 2)


def test_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_PREFETCH", "")
    monkeypatch.setenv("WORKER_AMQP_URL", "")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("amqp_url", "amqp://user:hunter2@host/"),
        ("amqp_url", "amqp://one/,\namqp://two/"),
        ("database_url", "sqlite+aiosqlite:///flow_runs.db"),
        ("queue", "flow runs.create"),
        ("reply_to_pattern", "replies"),
        ("http_host", "0.0.0.0"),
        ("log_format", "json"),
        ("database_kind", "prefect"),
        ("prefetch", 10),
        ("migrate", True),
    ],
)
def test_blanks_around_a_setting_are_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | int
) -> None:
    """A secret's file often ends in a line break, which would name another queue or file."""
    monkeypatch.setenv(f"WORKER_{name.upper()}", f" {value}\r\n")
    assert getattr(load_settings(), name) == value


def test_no_setting_takes_blanks_around_it_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            monkeypatch.setenv(f"WORKER_{name.upper()}", f"\t {field.default} \n")
            assert getattr(load_settings(), name) == field.default


def test_variables_that_are_no_settings_are_told_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("WORKER_BATCHMAX=2\nSOMETHING_ELSE=3\nWORKER_QUEUE=q\n")
    monkeypatch.setenv("WORKER_PREFETCHH", "1")
    monkeypatch.setenv("worker_xyzzy", "1")
    assert list(unknown_settings()) == [
        ("WORKER_BATCHMAX", "WORKER_BATCH_MAX"),
        ("WORKER_PREFETCHH", "WORKER_PREFETCH"),
        ("WORKER_XYZZY", None),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "WORKER_PREFETCH",
        "worker_prefetch",
        "WORKER_SERVICE_HOST",
        "WORKER_SERVICE_PORT",
        "WORKER_SERVICE_PORT_HTTP",
        "WORKER_PORT",
        "WORKER_PORT_8080_TCP_ADDR",
        "WORKER_TEST_GENERATED",
        "SOMEBODY_ELSES",
    ],
)
def test_variables_of_others_and_of_kubernetes_are_not_told(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A service named "worker" gives every container of its namespace such variables."""
    monkeypatch.setenv(name, "1")
    assert list(unknown_settings()) == []


def test_log_level_is_read_in_any_case() -> None:
    assert load_settings(log_level="WARNING").log_level == "warning"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("amqp_url", "http://localhost", "amqp://user:password@host"),
        ("amqp_url", "localhost:5672", "amqp://user:password@host"),
        ("amqp_url", "amqp:///vhost", "amqp://user:password@host"),
        ("amqp_url", "amqp://host:0/", "port"),
        ("amqp_url", "amqp://host:70000/", "URL"),
        ("amqp_url", "amqp://user:hunter/2@host/", "%2F"),
        ("amqp_url", "amqp://user:12/hunter@host/", "%2F"),
        ("amqp_url", "amqp://user:hunter#2@host/", "%23"),
        ("database_url", "flow_runs.db", "can't be read as a URL"),
        ("database_url", "postgresql://user:hunter@host:port/name", "can't be read as a URL"),
        ("database_url", "mysql://user:hunter@host/name", "postgresql+asyncpg://"),
        ("queue", "amq.create", "amq."),
        ("reply_to_pattern", "replies.(", "no regular expression"),
        ("queue", "ä" * 126, "250 bytes"),
        ("queue", "flow-runs\n.create", "letters of ASCII"),
        ("queue", "flow-runs.créate", "letters of ASCII"),
        ("queue", "flow-runs.*", "letters of ASCII"),
        ("queue", " \n", "1 to 250 bytes"),
        ("amqp_url", "amqp://user:hunter2@ho\nst/", "can't be seen"),
        ("amqp_url", "amqp://one/, amqp://user:hunter2@host/v\thost", "can't be seen"),
        ("database_url", "sqlite+aiosqlite:///flow\nruns.db", "can't be seen"),
        ("database_url", "postgresql://user:hunter2@host/na\0me", "can't be seen"),
        ("prefetch", "0", "greater than or equal to 1"),
        ("prefetch", "65536", "65535"),
        ("batch_max", "many", "integer"),
        ("http_port", "-1", "greater than or equal to 0"),
        ("database_kind", "mine", "'any', 'prefect' or 'standalone'"),
        ("max_parameter_size", "-1", "greater than or equal to 0"),
        ("prefect_api_url", "prefect:4200/api", "http://HOST:PORT/api"),
        ("prefect_api_url", "http://:4200/api", "http://HOST:PORT/api"),
        ("prefect_api_url", "http://host:port/api", "http://HOST:PORT/api"),
        ("prefect_api_url", "http://admin:hunter2@host/api", "WORKER_PREFECT_API_AUTH_STRING"),
        ("prefect_events_per_second", "0", "greater than 0"),
        ("log_format", "xml", "'console' or 'json'"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("shutdown_timeout", "inf", "finite"),
        ("shutdown_timeout", "-1", "greater than or equal to 0"),
    ],
)
def test_wrong_setting_is_told_by_its_name_without_its_password(name: str, value: str, told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(**{name: value})
    line = str(raised.value)
    assert line.startswith(f"WORKER_{name.upper()}: ")
    assert told in line
    assert "hunter" not in line


def test_events_need_a_prefect_servers_database() -> None:
    api = "http://prefect:4200/api"
    assert load_settings(prefect_api_url=f"{api}/").prefect_api_url == api
    assert load_settings(prefect_api_url=api).database_kind == "prefect"
    assert load_settings(prefect_api_url=api).queue_names.events
    assert not load_settings().queue_names.events
    with pytest.raises(SettingsError, match=r"^WORKER_PREFECT_API_URL: .*WORKER_DATABASE_KIND"):
        load_settings(prefect_api_url=api, database_kind="standalone")
    with pytest.raises(SettingsError, match=r"^WORKER_QUEUE: .*248 bytes"):
        load_settings(prefect_api_url=api, queue="q" * 249)


def test_states_are_told_where_the_setting_says_so() -> None:
    assert load_settings().states == "off"
    assert not load_settings().queue_names.states
    assert load_settings(states="Final").queue_names.states
    with pytest.raises(SettingsError, match=r"^WORKER_STATES: .*'off', 'final' or 'all'"):
        load_settings(states="some")
    with pytest.raises(SettingsError, match=r"^WORKER_QUEUE: .*120 bytes"):
        load_settings(states="all", queue="q" * 121)
    load_settings(queue="q" * 121)


def test_every_wrong_setting_has_its_line() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(prefetch=0, batch_max=0)
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "WORKER_PREFETCH",
        "WORKER_BATCH_MAX",
    ]


def test_unreadable_dotenv_is_told() -> None:
    Path(".env").write_bytes(b"WORKER_QUEUE=\xff\n")
    with pytest.raises(SettingsError, match=r"\.env"):
        load_settings()


@pytest.mark.parametrize(
    "options",
    [
        {"amqp_url": "amqps://user:p%40ss@host:5671/%2F?cafile=/ca.pem"},
        {"database_url": "postgres://host/name"},
        {"database_url": "postgresql://user@/name?host=/run/postgresql"},
        {"database_url": "sqlite:///folder/a@b.db"},
        {"queue": "without-a-dot"},
    ],
)
def test_usable_settings_are_taken_as_they_are(options: dict[str, Any]) -> None:
    assert load_settings(**options).model_dump().items() >= options.items()


def test_settings_show_no_password() -> None:
    settings = load_settings(
        amqp_url="amqp://user:hunter2@host/", database_url="postgresql://user:hunter2@host/name"
    )
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:hunter2@host:5672/vhost", "amqp://user:***@host:5672/vhost"),
        ("amqp://user:hunter%402%2F@host/", "amqp://user:***@host/"),
        ("amqp://:hunter2@host/", "amqp://:***@host/"),
        ("amqp://user:hunter@2@host/", "amqp://user:***@host/"),
        ("amqp://user:hunter/2@host/", "amqp://user:***@host/"),
        ("amqp://user:hunter?2@host/", "amqp://user:***@host/"),
        ("amqp://user:hunter\n2@host/", "amqp://user:***@host/"),
        ("amqp://user:hunter2@[::1]:5672/%2F", "amqp://user:***@[::1]:5672/%2F"),
        ("postgresql+asyncpg://host/name?user=user&password=hunter2", "postgresql+asyncpg://host/name"),
        ("amqp://host:5672/vhost", "amqp://host:5672/vhost"),
        ("sqlite+aiosqlite:////folder/a:b@c.db", "sqlite+aiosqlite:////folder/a:b@c.db"),
    ],
)
def test_redacted_url_has_no_password(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"deployment": "ship"}, "WORKER_DEPLOYMENT: must be FLOW NAME/DEPLOYMENT NAME"),
        ({"deployment": "a/b/c"}, "WORKER_DEPLOYMENT: must be FLOW NAME/DEPLOYMENT NAME"),
        ({"deployment": "a/b\0"}, "WORKER_DEPLOYMENT: must be FLOW NAME/DEPLOYMENT NAME"),
        ({"deployment": "a/b", "database_kind": "standalone"}, "WORKER_DEPLOYMENT: needs a Prefect server's"),
        ({"deployment": "a/b", "flow_pattern": "c"}, "WORKER_DEPLOYMENT: WORKER_FLOW_PATTERN or WORKER_"),
        ({"deployment": "a/b", "deployment_pattern": "none"}, "_DEPLOYMENT_PATTERN forbids it"),
        ({"deployment_parameter": "a"}, "WORKER_DEPLOYMENT_PARAMETER: needs WORKER_DEPLOYMENT"),
        ({"deployment_replies": True}, "WORKER_DEPLOYMENT_REPLIES: needs WORKER_DEPLOYMENT"),
        ({"bindings": "events"}, "WORKER_BINDINGS: 'events' must be EXCHANGE:ROUTING KEY"),
        ({"bindings": "events:a, :b"}, "WORKER_BINDINGS: ':b' must be EXCHANGE:ROUTING KEY"),
        ({"bindings": "ev€nts:a"}, "WORKER_BINDINGS: 'ev€nts' is no name of an exchange"),
        ({"bindings": f"{'e' * 128}:a"}, "is no name of an exchange"),
        ({"bindings": f"e:{'€' * 86}"}, "is no routing key"),
    ],
)
def test_wrong_settings_of_plain_messages_are_told(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(**wrong)
    assert told in str(raised.value)


def test_plain_messages_need_a_prefect_servers_database() -> None:
    settings = load_settings(deployment="Ship It/production", deployment_parameter="order")
    assert settings.database_kind == "prefect"
    assert settings.plain_messages == PlainMessages("Ship It/production", "order")
    assert load_settings().plain_messages is None


def test_bindings_are_split_at_the_last_colon() -> None:
    text = "orders:order.created, urn:of:events:#,amq.fanout:, orders:order.created,"
    found = load_settings(bindings=text).queue_names.bindings
    assert [(each.exchange, each.routing_key) for each in found] == [
        ("orders", "order.created"),
        ("urn:of:events", "#"),
        ("amq.fanout", ""),
    ]
