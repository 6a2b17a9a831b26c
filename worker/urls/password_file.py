"""Passwords in files, which may be rotated at any time. A URL names its file in its query. Connects
to nothing.
"""

from urllib.parse import quote

# The parameter in a URL's query, of brokers and databases.
PASSWORD_FILE = "password_file"  # noqa: S105  # a name
# Largest file, in bytes. An OAuth token has a few thousand: a larger file is a wrong one.
_MAX_BYTES = 64 * 1024


class PasswordUnreadable(Exception):
    """A file has no password now. The message names the file. A later try may succeed."""


def with_password_file(url: str, path: str) -> str:
    """The URL with this file in its query. The file overrides the URL's own password."""
    return f"{url}{'&' if '?' in url else '?'}{PASSWORD_FILE}={quote(path)}"


def read_password(path: str) -> str:
    """A file's text without one line break at its end.

    It is opened by its path each time: Kubernetes replaces a secret by switching a symbolic link.

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
        # Leave out the cause, which quotes the content.
        raise PasswordUnreadable(f"The password file '{path}' is no text in UTF-8") from None
    password = password.removesuffix("\n").removesuffix("\r")
    if len(content) > _MAX_BYTES:
        raise PasswordUnreadable(f"The password file '{path}' has more than {_MAX_BYTES} bytes")
    if not password or "\0" in password:
        # Perhaps it is being written.
        raise PasswordUnreadable(f"The password file '{path}' is empty or has a NUL character")
    return password
