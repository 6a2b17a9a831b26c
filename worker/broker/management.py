"""Reads policies and bindings from RabbitMQ's management API, since AMQP doesn't show them."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from worker.urls.broker import split_urls, virtual_host, with_password
from worker.urls.password_file import PasswordUnreadable

# Seconds for one answer. The API can be slow if there are many queues.
ANSWER_TIMEOUT = 10.0

_ADVICE = {
    401: "check the user and the password; the user needs the tag 'management'",
    403: "the user needs the tag 'management' and a permission on the virtual host",
}


class ManagementUnavailable(Exception):
    """The API gave no usable answer. The message has the reason, and no password."""


class Management:
    """Reads from the API. Use it as a context.

    Args:
        url: ``http://HOST:15672`` or ``https://…``, with or without user and password.
        amqp_urls: the broker's. The first gives the virtual host and the authorities' certificates
            (cafile), and user and password if ``url`` has none.

    Raises:
        ManagementUnavailable: the file with the broker's password can't be read.
    """

    def __init__(self, url: str, amqp_urls: str) -> None:
        base = URL(url)
        try:
            broker = with_password(URL(split_urls(amqp_urls)[0]))
        except PasswordUnreadable as error:
            raise ManagementUnavailable(str(error)) from error
        self.vhost = virtual_host(broker)
        self._base = str(base.with_user(None)).rstrip("/").removesuffix("/api")
        login = base if base.user is not None else broker
        pair = f"{login.user or 'guest'}:{login.password or ('guest' if login.user is None else '')}"
        self._headers = {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
        self._cafile = broker.query.get("cafile") if base.scheme == "https" else None
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        try:
            tls = ssl.create_default_context(cafile=self._cafile) if self._cafile else True
        except OSError as error:
            raise ManagementUnavailable(f"the file '{self._cafile}' can't be read: {error}") from error
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT),
            connector=aiohttp.TCPConnector(ssl=tls),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def queue(self, name: str) -> Mapping[str, Any] | None:
        """A queue with its policies. None if it does not exist, or was just made: for some seconds
        the API does not know its policies.

        Raises:
            ManagementUnavailable: the API gave no usable answer.
        """
        queue = await self._get("queues", self.vhost, name)
        known = isinstance(queue, dict) and isinstance(queue.get("effective_policy_definition"), dict)
        return queue if known else None

    async def bound(self, exchange: str, routing_key: str, queue: str) -> bool:
        """True if the binding exists; raises as :meth:`queue` does."""
        bindings = await self._get("bindings", self.vhost, "e", exchange, "q", queue)
        if not isinstance(bindings, list):
            return False
        return any(isinstance(each, dict) and each.get("routing_key") == routing_key for each in bindings)

    async def _get(self, *path: str) -> Any:
        """The API's answer; None for 404."""
        url = URL("/".join((self._base, "api", *(quote(part, safe="") for part in path))), encoded=True)
        try:
            # A redirect could send the password elsewhere.
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status == 404:
                    return None
                if response.status != 200:
                    advice = f": {_ADVICE[response.status]}" if response.status in _ADVICE else ""
                    raise ManagementUnavailable(f"{self._base} answers {response.status}{advice}")
                return await response.json(content_type=None)
        except TimeoutError as error:
            raise ManagementUnavailable(
                f"{self._base} does not answer within {ANSWER_TIMEOUT:g} seconds"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise ManagementUnavailable(f"{self._base}: {str(error) or type(error).__name__}") from error
