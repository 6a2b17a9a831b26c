"""Removes the secrets of URLs and settings from texts."""

import re

_URL = re.compile(r"""://[^\s"]+""")
_USER = re.compile(r"://[^/:@]*:")
_NAME = r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|auth_string)[\w.-]*"
# A parameter of a query or of a libpq string, an entry of a printed dict or JSON object, or an
# authorization header.
_VALUES = re.compile(
    rf"""((?:^|[?&;,\s'"]){_NAME}(?<!_file)=)[^\s&;"']+"""
    rf"""|(["']{_NAME}(?<!_file)["']:\s*["'])(?:[^"'\\]|\\.)+"""
    r"""|(\bauthorization["']?:\s*["']?(?:basic|bearer)\s+)[^\s"']+""",
    re.IGNORECASE,
)
# The patterns only match texts with one of these, and looking for them takes a tenth of the time.
_HINTS = ("passw", "passphrase", "pwd", "secret", "token", "auth")
# Parameters of a database URL's query to keep.
_WHERE = ("host=", "port=")


def without_secrets(text: str) -> str:
    """Replace each recognised secret with ``***``. Takes time linear in the length of the text,
    whatever its content.
    """
    if "://" in text:
        text = _URL.sub(_without_password, text)
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):
        return text
    return _VALUES.sub(lambda match: f"{next(filter(None, match.groups()))}***", text)


def _without_password(match: re.Match[str]) -> str:
    url = match[0]
    end = url.rfind("@")  # the last: a password may have one
    user = _USER.search(url, 0, max(end, 0))
    return url if user is None else f"{url[: user.end()]}***{url[end:]}"


def redact(url: str) -> str:
    """A URL without its password. Its query may hold another one, so only hosts and ports are
    kept.
    """
    shown = re.sub(r"(?<=://)([^/@:]*):.*(?=@)", r"\1:***", url, flags=re.DOTALL)
    shown, _, query = shown.partition("?")
    where = [each for each in query.split("&") if each.lower().startswith(_WHERE)]
    return "?".join((shown, *(("&".join(where),) if where else ())))
