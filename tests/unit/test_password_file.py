"""Passwords in files: which part of a file is the password, and which URL gets it."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from yarl import URL

from worker.observability.redaction import redact
from worker.settings import load_settings
from worker.urls.broker import check_urls, split_urls, with_password
from worker.urls.password_file import PasswordUnreadable, read_password


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"hunter2", "hunter2"),
        (b"hunter2\n", "hunter2"),
        (b"hunter2\r\n", "hunter2"),
        (b"hunter2\n\n", "hunter2\n"),
        (b" hunter 2 ", " hunter 2 "),
        ("pässword%2F/?#@:\n".encode(), "pässword%2F/?#@:"),
        (b"x" * 65536, "x" * 65536),
    ],
)
def test_one_line_break_at_the_end_is_no_part_of_it(tmp_path: Path, content: bytes, password: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    assert read_password(str(file)) == password


@pytest.mark.parametrize("content", [b"", b"\n", b"hunter2\xff", b"hunter2\0", b"hunter2" * 10_000, None])
def test_a_file_without_a_password_is_told_and_not_shown(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    for path in (file, tmp_path):
        with pytest.raises(PasswordUnreadable, match=str(path)) as unreadable:
            read_password(str(path))
        assert "hunter2" not in f"{unreadable.value!r} {unreadable.value.__cause__!r}"


def test_each_url_of_the_broker_has_the_password_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a password, of the broker's & ours"
    urls = "amqp://user:other@one/vhost,amqps://two/?cafile=/ca.pem&heartbeat=5, amqp://three"
    settings = load_settings(amqp_url=urls, amqp_password_file=str(file))
    assert check_urls(settings.amqp_url) == settings.amqp_url
    one, two, three = split_urls(settings.amqp_url)
    for password in ("first/@:%", "second"):
        file.write_text(password + "\n")
        assert with_password(URL(one)) == URL("amqp://user@one/vhost").with_password(password)
        assert with_password(URL(two)).password == with_password(URL(three)).password == password
    assert dict(with_password(URL(two)).query) == {"cafile": "/ca.pem", "heartbeat": "5"}
    assert str(file) not in redact(settings.amqp_url)


def test_a_url_without_a_file_keeps_its_own() -> None:
    url = URL("amqp://user:hunter2@one/?heartbeat=5")
    assert with_password(url) is url


def test_the_url_of_the_database_names_the_file_where_it_has_passwords() -> None:
    url = "postgresql://user@host/db"
    for given in (url, f"{url}?sslmode=require"):
        settings = load_settings(database_url=given, database_password_file="/run/a secret")
        assert make_url(settings.database_url).query["password_file"] == "/run/a secret"
    # The commands accept SQLite with a worker's environment.
    sqlite = "sqlite+aiosqlite:///flow_runs.db"
    assert load_settings(database_url=sqlite, database_password_file="/x").database_url == sqlite
