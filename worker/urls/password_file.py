"""Passwords in files, as whoever rotates them writes them anew; a URL names its file in its query.
Connects to nothing.
"""

from urllib.parse import quote

# In the query of a URL, of the broker's and of the database's alike.
PASSWORD_FILE = "password_file"  # noqa: S105  # a name
# A token of OAuth has a few thousand. What is longer, or has no end, is another file. Bytes.
_MAX_BYTES = 64 * 1024


class PasswordUnreadable(Exception):
    """There is no password in a file now; the message names the file. Another try may find one."""


def with_password_file(url: str, path: str) -> str:
    """The URL with this file in its query, which goes before its own."""
    return f"{url}{'&' if '?' in url else '?'}{PASSWORD_FILE}={quote(path)}"


def read_password(path: str) -> str:
    """A file's text without one line break at its end.

    It is read by its path each time: Kubernetes puts a new secret in place by switching a symbolic
    link.

    Raises:
        PasswordUnreadable: the file can't be read, is no text in UTF-8, or is empty.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        password = content.decode()
    except OSError as error:
        raise PasswordUnreadable(f"The password file '{path}' can't be read: {error.strerror}") from error
    except ValueError:
        # Without its cause, which quotes what was read.
        raise PasswordUnreadable(f"The password file '{path}' is no text in UTF-8") from None
    password = password.removesuffix("\n").removesuffix("\r")
    if len(content) > _MAX_BYTES:
        raise PasswordUnreadable(f"The password file '{path}' has more than {_MAX_BYTES} bytes")
    if not password or "\0" in password:
        # One that is being written, perhaps.
        raise PasswordUnreadable(f"The password file '{path}' is empty or has a NUL character")
    return password
