"""Settings: where they come from, how a wrong one is told, and that no password is shown."""

from pathlib import Path
from typing import Any

import pytest

from worker.settings import Settings, SettingsError, load_settings, redact


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine's, and an empty folder."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WORKER_{name.upper()}", raising=False)
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
        ("prefetch", "0", "greater than or equal to 1"),
        ("prefetch", "65536", "65535"),
        ("batch_max", "many", "integer"),
        ("http_port", "-1", "greater than or equal to 0"),
        ("database_kind", "mine", "'any', 'prefect' or 'standalone'"),
        ("max_parameter_size", "-1", "greater than or equal to 0"),
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
