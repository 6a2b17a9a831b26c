"""Reads AMQP URLs from the user: one, or several for a cluster's nodes. Connects to nothing."""

import re
from dataclasses import dataclass

from yarl import URL

from .password_file import PASSWORD_FILE, read_password, with_password_file

# The most common error in a URL. The URL is not shown: it has the password.
ENCODE = "(in a user name, password or vhost, each of / ? # @ : is written as %2F %3F %23 %40 %3A)"
# The separator of two URLs. A password may have a comma too.
_BETWEEN = re.compile(r"\s*,\s*(?=amqps?://)")

# Parameters that aio-pika and aiormq read from a URL's query. ``no_verify_ssl`` is left out: the
# broker's certificate is always verified.
_QUERY = frozenset(
    (
        *("name", "heartbeat", "timeout", "auth", "cafile", "capath", "cadata", "certfile", "keyfile"),
        *("interleave", "happy_eyeballs_delay", PASSWORD_FILE),
    )
)
# Other clients' names of parameters, with the name here.
_INSTEAD = {"cacertfile": "cafile", "ca_certs": "cafile", "connection_timeout": "timeout"}


@dataclass(frozen=True, slots=True)
class Server:
    """Where a broker listens."""

    host: str
    port: int


def server_of(url: URL) -> Server:
    """The server of a URL, with the scheme's port (IANA's) if the URL has none."""
    return Server(url.host or "localhost", url.port or (5671 if url.scheme == "amqps" else 5672))


def split_urls(urls: str) -> list[str]:
    """The URLs of a comma-separated list."""
    return _BETWEEN.split(urls.strip())


def virtual_host(url: URL) -> str:
    """The virtual host of a URL, as aiormq reads it."""
    return url.path[1:].replace("%2F", "/") or "/"


def check_urls(urls: str) -> str:
    """Check that each URL of a list can be read. Returns the list.

    Raises:
        ValueError: a URL can't be read. The message has the reason, without the URL.
    """
    for url in split_urls(urls):
        try:
            parsed = URL(url)
            port = parsed.port
        except ValueError:
            raise ValueError(f"can't be read as a URL {ENCODE}") from None
        if parsed.scheme not in ("amqp", "amqps") or not parsed.host:
            raise ValueError(
                "must be a URL such as amqp://user:password@host:5672/vhost, or amqps:// for TLS"
            )
        if "@" in parsed.raw_path:  # an unescaped slash in the password ends the host's part too early
            raise ValueError(f"has an @ behind the host {ENCODE}")
        if port is not None and not 0 < port < 65536:
            raise ValueError("has no usable port")
        for name in sorted(parsed.query.keys() - _QUERY):
            instead = f"; it is '{_INSTEAD[name]}' here" if name in _INSTEAD else ""
            raise ValueError(f"has '{name}' in its query, which means nothing{instead}")
    return urls


def with_password_file_in_each(urls: str, path: str) -> str:
    """The list with this password file in each URL."""
    return ", ".join(with_password_file(url, path) for url in split_urls(urls))


def with_password(url: URL) -> URL:
    """The URL with the password from its password file, if it has one.

    Raises:
        PasswordUnreadable: the file has no password.
    """
    files = url.query.getall(PASSWORD_FILE, ())
    return url.without_query_params(PASSWORD_FILE).with_password(read_password(files[-1])) if files else url
