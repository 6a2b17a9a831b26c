"""A network between workers and a server that can be slow, fall silent, or be cut. It passes bytes
and knows no protocol.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self


class Proxy:
    """Forwards connections to the first of some local ports that accepts them, like a load
    balancer.

    Attributes:
        port: where it listens.
        latency: seconds of delay, each way.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._targets = list(ports)
        self._away = False
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.latency = 0.0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.speak()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silence(self) -> None:
        """Pass nothing on, and close nothing; new connections are accepted, and are silent too."""
        self._open.clear()

    def speak(self) -> None:
        """Pass everything on again, including the bytes held back."""
        self._open.set()

    def cut(self) -> None:
        """Break all connections (reset, not closed)."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def go_away(self) -> None:
        """Break all connections, and each new one until :meth:`come_back`."""
        self._away = True
        self.cut()

    def come_back(self) -> None:
        """Accept connections again."""
        self._away = False

    def close_door(self) -> None:
        """Break each new connection from now on."""
        self._targets.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._open.wait()
        for port in () if self._away else self._targets:
            with suppress(OSError):
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(there_writer)
        await asyncio.gather(
            self._pass(reader, there_writer, lambda data: self.from_client(data, writer)),
            self._pass(there_reader, writer),
        )
        self._writers -= {writer, there_writer}

    def from_client(self, data: bytes, client: asyncio.StreamWriter) -> bytes:
        """The bytes to pass on for a client's data. Subclasses may change or answer them."""
        return data

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        look: Callable[[bytes], bytes] = lambda data: data,
    ) -> None:
        """Pass on one side's data until it ends or the other side is gone."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        loop = asyncio.get_running_loop()

        async def receive() -> None:
            data = b"-"
            while data:
                try:
                    data = await reader.read(65536)
                except OSError:
                    data = b""
                await under_way.put((loop.time() + self.latency, data))

        receiving = asyncio.create_task(receive())
        try:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(max(due - loop.time(), 0))
                await self._open.wait()
                if not data:
                    break
                writer.write(look(data))
                await writer.drain()
        except OSError:
            pass
        finally:
            receiving.cancel()
            writer.close()
