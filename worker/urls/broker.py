"""AMQP URLs as a user writes them: one, or several for a cluster's nodes; connects to nothing."""

import re

from yarl import URL

from .password_file import PASSWORD_FILE, read_password, with_password_file

# What stands in the way of reading a URL is most often this; the URL itself is not shown, as it has
# the password.
ENCODE = "(in a user name, password or vhost, each of / ? # @ : is written as %2F %3F %23 %40 %3A)"
# Between two URLs; a comma may stand in a password as well.
_BETWEEN = re.compile(r"\s*,\s*(?=amqps?://)")

# What aio-pika and aiormq read from a URL's query. Not among it: ``no_verify_ssl``, since who the
# broker is is always verified.
_QUERY = frozenset(
    (
        *("name", "heartbeat", "timeout", "auth", "cafile", "capath", "cadata", "certfile", "keyfile"),
        *("interleave", "happy_eyeballs_delay", PASSWORD_FILE),
    )
)
# By names that other clients have for it.
_INSTEAD = {"cacertfile": "cafile", "ca_certs": "cafile", "connection_timeout": "timeout"}


def split_urls(urls: str) -> list[str]:
    """The URLs of a list that is separated by commas."""
    return _BETWEEN.split(urls.strip())


def virtual_host(url: URL) -> str:
    """The virtual host of a URL, as aiormq reads it."""
    return url.path[1:].replace("%2F", "/") or "/"


def check_urls(urls: str) -> str:
    """The same list, once each of its URLs can be read.

    Raises:
        ValueError: one can't; the message says why, without the URL.
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
        if "@" in parsed.raw_path:  # a slash in the password ends the host's part before the host
            raise ValueError(f"has an @ behind the host {ENCODE}")
        if port is not None and not 0 < port < 65536:
            raise ValueError("has no usable port")
        for name in sorted(parsed.query.keys() - _QUERY):
            instead = f"; it is '{_INSTEAD[name]}' here" if name in _INSTEAD else ""
            raise ValueError(f"has '{name}' in its query, which means nothing{instead}")
    return urls


def with_password_file_in_each(urls: str, path: str) -> str:
    """The same list, in which each URL names this file for its password."""
    return ", ".join(with_password_file(url, path) for url in split_urls(urls))


def with_password(url: URL) -> URL:
    """The URL as it is now: with the password of the file that it names, if it names one.

    Raises:
        PasswordUnreadable: there is no password in the file.
    """
    files = url.query.getall(PASSWORD_FILE, ())
    return url.without_query_params(PASSWORD_FILE).with_password(read_password(files[-1])) if files else url
