"""Checks the values of single settings. Each function returns the value, or raises ValueError."""

import re
from typing import Any
from urllib.parse import urlsplit

from yarl import URL

from worker.contract.deployment_request import DEPLOYMENT_NAME
from worker.contract.topology import NAME, read_bindings
from worker.urls.broker import ENCODE, check_urls, split_urls
from worker.urls.database import read_database_url


def visible(url: str) -> None:
    """A text without line breaks and other characters that can't be seen."""
    # The libraries silently drop some of these characters, and then use another host or file.
    if not url.isprintable():
        raise ValueError("has a character that can't be seen, such as a line break")


def amqp_url(urls: str) -> str:
    """One URL of the broker, or several."""
    for url in split_urls(urls):
        visible(url)
    return check_urls(urls)


def database_url(url: str) -> str:
    """The database's URL."""
    visible(url)
    parsed = read_database_url(url)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError("must be sqlite+aiosqlite:///FILE or postgresql+asyncpg://user:password@host/name")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("must name a file: a database in memory ends with each connection")
    return url


def queue(name: str) -> str:
    """The name of the request queue."""
    if not name or len(f"{name}.dead".encode()) > 255:
        raise ValueError("must have 1 to 250 bytes")
    if name.startswith("amq."):
        raise ValueError("must not begin with 'amq.', which the broker keeps for itself")
    if not NAME.fullmatch(name):
        raise ValueError("may have letters of ASCII, digits, blanks and - _ . : @ # , / + alone")
    return name


def api_url(url: str | None) -> str | None:
    """The URL of Prefect's API, without a slash at its end."""
    if url is None:
        return None
    visible(url)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be http://HOST:PORT/api or https://HOST/api")
    if parts.username or parts.password:
        raise ValueError("must have no password: set WORKER_PREFECT_API_AUTH_STRING to user:password")
    return url.rstrip("/")


def management_url(url: str | None) -> str | None:
    """The URL of the broker's management API."""
    if url is None:
        return None
    visible(url)
    try:
        parsed = URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host) and parsed.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in url.rpartition("@")[2] or parsed.query:
        raise ValueError(f"must be http://HOST:15672 or https://user:password@HOST {ENCODE}")
    return url


def pattern(pattern: str | None) -> str | None:
    """A regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


def deployment(name: str | None) -> str | None:
    """``FLOW NAME/DEPLOYMENT NAME``."""
    if name is not None and not (re.fullmatch(DEPLOYMENT_NAME, name) and name.isprintable()):
        raise ValueError("must be FLOW NAME/DEPLOYMENT NAME")
    return name


def bindings(text: str) -> str:
    """``EXCHANGE:ROUTING KEY``, separated by commas."""
    read_bindings(text)
    return text


def file(path: str | None) -> str | None:
    """The path of a file."""
    if path is not None:
        visible(path)
    return path


def lower(value: Any) -> Any:
    """A word in lower case."""
    return value.lower() if isinstance(value, str) else value
