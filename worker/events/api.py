"""The part of Prefect's API that the emitter and ``doctor`` use. Knows no broker or database."""

import asyncio
import base64
import ssl
from typing import Any, Self
from uuid import uuid4

import aiohttp
from pydantic_core import from_json

from worker.events.patience import PATIENCE
from worker.observability.redaction import redact
from worker.settings import Settings
from worker.urls.password_file import PasswordUnreadable, read_password

# Bytes to read of an error's body, which quotes the request.
ERROR_BYTES = 4 * 1024 * 1024
# Characters of its text in a log line.
ERROR_LINE = 300


class APIAway(Exception):
    """The API does not accept events now, but may do so later. The message has the reason.

    Attributes:
        status: its status. 504 without an answer.
    """

    def __init__(self, reason: str, status: int = 504) -> None:
        super().__init__(reason)
        self.status = status


class EventsRefused(Exception):
    """The API refuses one or all of these events. Sending them again would not help."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"Prefect's API answers {status}: {reason}")
        self.status = status


class PrefectAPI:
    """Requests to Prefect's API, with its login, its CSRF token and its certificate.

    Use as an async context manager.

    Args:
        timeout: the longest request, in seconds.
    """

    def __init__(self, settings: Settings, timeout: float = PATIENCE.answer) -> None:
        assert settings.prefect_api_url is not None
        self._url = settings.prefect_api_url
        self._timeout = aiohttp.ClientTimeout(timeout)
        self._cafile = settings.prefect_api_cafile
        self._headers = {"Content-Type": "application/json"}
        self._auth_string = settings.prefect_api_auth_string
        self._auth_string_file = settings.prefect_api_auth_string_file
        # The CSRF token is valid for this client only, as in Prefect's own client.
        self._client = str(uuid4())
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def post_events(self, body: bytes) -> None:
        """Send events.

        Args:
            body: a JSON list of events.

        Raises:
            APIAway: none is accepted now, or that is unknown. The events may be sent again.
            EventsRefused: one or all will never be accepted.
        """
        status, answer = await self._request("POST", "/events", body)
        if status == 403 and await self._take_csrf_token():
            status, answer = await self._request("POST", "/events", body)
        if status == 204:
            return
        if status in (413, 422):
            raise EventsRefused(status, _reason(answer))
        raise self._unexpected("/events", status, answer)

    async def has(self, path: str) -> bool:
        """Whether an object exists, such as ``/flows/ID``.

        Raises:
            APIAway: there is no clear answer.
        """
        status, answer = await self._request("GET", path)
        if status in (200, 404):
            return status == 200
        raise self._unexpected(path, status, answer)

    async def version(self) -> str:
        """The server's version.

        Raises:
            APIAway: there is no answer, or none of a Prefect server.
        """
        status, answer = await self._request("GET", "/admin/version")
        version = _json(answer)
        if status == 200 and isinstance(version, str):
            return version
        raise self._unexpected("/admin/version", status, answer)

    def _unexpected(self, path: str, status: int, answer: bytes) -> APIAway:
        advice = _ADVICE.get(status, "")
        return APIAway(f"{self._url}{path} answers {status}{advice}: {_reason(answer)}", status)

    async def _take_csrf_token(self) -> bool:
        """Get a token for further requests. False if the server has none."""
        self._headers.pop("Prefect-Csrf-Token", None)
        status, answer = await self._request("GET", f"/csrf-token?client={self._client}")
        token = _json(answer)
        if status != 200 or not isinstance(token, dict) or not isinstance(token.get("token"), str):
            return False
        self._headers |= {"Prefect-Csrf-Token": token["token"], "Prefect-Csrf-Client": self._client}
        return True

    async def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        try:
            http = self._session()
            # A proxy's redirect would turn a POST into a GET.
            async with http.request(
                method,
                self._url + path,
                data=body,
                headers=self._headers | self._login(),
                allow_redirects=False,
            ) as response:
                return response.status, await response.content.read(ERROR_BYTES)
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            reason = str(error) or type(error).__name__
            raise APIAway(f"No answer from {redact(self._url)}: {reason}") from error

    def _login(self) -> dict[str, str]:
        auth_string = self._auth_string
        if self._auth_string_file:
            try:
                auth_string = read_password(self._auth_string_file)
            except PasswordUnreadable as error:
                raise APIAway(f"No login at {redact(self._url)}: {error}", 401) from error
        if not auth_string:
            return {}
        return {"Authorization": f"Basic {base64.b64encode(auth_string.encode()).decode()}"}

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            # Read at the first request: the file may appear after the start.
            context = ssl.create_default_context(cafile=self._cafile) if self._cafile else True
            self._http = aiohttp.ClientSession(
                timeout=self._timeout, connector=aiohttp.TCPConnector(ssl=context, limit=1)
            )
        return self._http


_ADVICE = {
    401: " (check WORKER_PREFECT_API_AUTH_STRING, or its file)",
    403: " (check WORKER_PREFECT_API_AUTH_STRING, or its file)",
    404: " (does WORKER_PREFECT_API_URL end with /api?)",
    405: " (does WORKER_PREFECT_API_URL end with /api?)",
    200: " and not 204 (does WORKER_PREFECT_API_URL end with /api?)",
}


def _json(answer: bytes) -> Any:
    try:
        return from_json(answer)
    except ValueError:
        return None


def _reason(answer: bytes) -> str:
    """An answer's reason in one line."""
    found = _json(answer)
    if isinstance(found, dict):
        details = found.get("exception_detail")
        if isinstance(details, list) and details and isinstance(details[0], dict):
            where = ".".join(str(part) for part in details[0].get("loc", ()))
            return f"{where}: {details[0].get('msg')}"[:ERROR_LINE]
        reason = found.get("detail") or found.get("exception_message")
        if reason:
            return str(reason)[:ERROR_LINE]
    return " ".join(answer.decode(errors="replace").split())[:ERROR_LINE] or "no reason given"
