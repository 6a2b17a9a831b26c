"""Admits requests to the pages: a token, a cookie, and checks of each request. Knows no page.

The token is in the URL that the command prints. It becomes a cookie. Names other than those of this
machine (DNS rebinding), other origins and other users of the machine get nothing.
"""

import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

# The names of this machine, as a browser writes them.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The name of the form's field.
FORM_TOKEN = "form_token"  # noqa: S105  # a name
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": with that, browsers send the origin "null" with each form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# The browser follows it as a page of ours. A redirect would come without the cookie, which is
# strict, where the link was in another page.
_OPENING = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>flow-run-worker</title>'
    '<link rel="icon" href="/static/icon.svg">'
    '<meta http-equiv="refresh" content="0; url=/"><p><a href="/">Open the pages</a></p></html>'
)


class Access:
    """The secrets of one run of the command, and the checks.

    Args:
        names: host names of the pages, besides those of this machine.

    Attributes:
        token: goes into the URL.
        form_token: goes into each form.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset((*LOOPBACK, *(name.lower() for name in names)))
        self.token = secrets.token_urlsafe(32)
        self.form_token = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        # Browsers send a cookie to all ports of a host, so two such commands need two names.
        self._cookie = f"flow-run-worker-{secrets.token_hex(4)}"

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer 403 to other names and origins, 401 without the token."""
        response = await self._answer(request, handler)
        response.headers.update(_HEADERS)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if (wrong := self._wrong_origin(request)) is not None:
            return web.Response(status=403, text=f"{wrong}\n")
        if request.path == "/" and request.method == "GET" and "token" in request.query:
            if not _same(request.query["token"], self.token):
                return web.Response(status=401, text="This token is wrong, or of an earlier run.\n")
            opening = web.Response(text=_OPENING, content_type="text/html")
            opening.set_cookie(self._cookie, self._session, httponly=True, samesite="Strict", path="/")
            return opening
        if not _same(request.cookies.get(self._cookie, ""), self._session):
            return web.Response(status=401, text="Open the URL that 'flow-run-worker ui' has printed.\n")
        if request.method == "POST":
            given = (await request.post()).get(FORM_TOKEN)
            if not isinstance(given, str) or not _same(given, self.form_token):
                return web.Response(status=403, text="This form is of an earlier run. Load the page again.\n")
        return await handler(request)

    def _wrong_origin(self, request: web.Request) -> str | None:
        """Why a request comes from elsewhere."""
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or _name(hosts[0]) not in self._names:
            return "This host name is not allowed. See 'flow-run-worker ui --help': --allow-host."
        origins = request.headers.getall("Origin", [])
        own = {f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")}
        if not own.issuperset(origins) or (request.method != "GET" and not origins):
            return "This request comes from another page."
        # Without an origin browsers say so otherwise: a picture or a script of another page.
        site = request.headers.get("Sec-Fetch-Site", "none")
        followed = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        if site not in ("none", "same-origin") and not followed:
            return "This request comes from another page."
        return None


def _name(host: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname if parts.netloc == host and "@" not in host else None
    except ValueError:
        return None


def _same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode())
