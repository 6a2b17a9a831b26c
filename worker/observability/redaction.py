"""Texts without the secrets that URLs and settings bring into them."""

import re

_URL = re.compile(r"""://[^\s"]+""")
_USER = re.compile(r"://[^/:@]*:")
_NAME = r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|auth_string)[\w.-]*"
# A parameter of a query or of a libpq string; an entry of a dict or of JSON, as an error prints it;
# a header by which one logs in.
_VALUES = re.compile(
    rf"""((?:^|[?&;,\s'"]){_NAME}(?<!_file)=)[^\s&;"']+"""
    rf"""|(["']{_NAME}(?<!_file)["']:\s*["'])(?:[^"'\\]|\\.)+"""
    r"""|(\bauthorization["']?:\s*["']?(?:basic|bearer)\s+)[^\s"']+""",
    re.IGNORECASE,
)
# None of these patterns matches without one of these; to look for them takes a tenth of the time.
_HINTS = ("passw", "passphrase", "pwd", "secret", "token", "auth")
# Parameters of a database URL's query that stay.
_WHERE = ("host=", "port=")


def without_secrets(text: str) -> str:
    """Put ``***`` in place of each secret of a text that can be recognised. The time it takes grows
    with the length of the text, whatever is in it.
    """
    if "://" in text:
        text = _URL.sub(_without_password, text)
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):
        return text
    return _VALUES.sub(lambda match: f"{next(filter(None, match.groups()))}***", text)


def _without_password(match: re.Match[str]) -> str:
    url = match[0]
    end = url.rfind("@")  # the last, as a password may have one
    user = _USER.search(url, 0, max(end, 0))
    return url if user is None else f"{url[: user.end()]}***{url[end:]}"


def redact(url: str) -> str:
    """A URL without its password. Of its query only hosts and ports stay, as it may hold another
    password.
    """
    shown = re.sub(r"(?<=://)([^/@:]*):.*(?=@)", r"\1:***", url, flags=re.DOTALL)
    shown, _, query = shown.partition("?")
    where = [each for each in query.split("&") if each.lower().startswith(_WHERE)]
    return "?".join((shown, *(("&".join(where),) if where else ())))
