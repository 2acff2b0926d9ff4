"""A TCP link between a service and a server that can be cut, frozen and slowed."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PORTS = range(20_000, 32_000)
"""Below the range of ephemeral ports, one of which could be taken while its server restarts."""


def free_port() -> int:
    """A free port of loopback."""
    while True:
        port = random.choice(PORTS)  # noqa: S311 - no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Proxy:
    """Forwards a port of loopback to an address while the link is whole."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.StreamWriter] = set()
        self._stranded: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = {"up": asyncio.Event(), "down": asyncio.Event()}
        self.delay_seconds = 0.0
        self.lock = asyncio.Lock()
        """Held while the link is cut."""
        self.hang_up_after_bytes: int | None = None
        """After this many bytes from the server the next connection ends; then the link works again."""
        self.port = free_port()
        self.thaw()

    @property
    def in_use(self) -> bool:
        """Whether a connection is open."""
        return bool(self._links)

    async def start(self) -> None:
        """Listens, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Closes every connection and refuses new ones until `start`."""
        if self._server:
            self._server.close()
        for link in list(self._links):
            link.transport.abort()
        self._links.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead_to(self, host: str, port: int) -> None:
        """Forwards new connections to another address; open ones stay."""
        self._target = host, port

    def freeze(self, *directions: str) -> None:
        """Holds the bytes to the server ("up"), from it ("down"), or both, without closing a connection (half-open)."""
        for direction in directions or ("up", "down"):
            self._flowing[direction].clear()

    def strand(self) -> None:
        """Leaves every open connection half-open for good; new ones work."""
        self.freeze()
        self._stranded |= self._links
        self._flowing = {"up": asyncio.Event(), "down": asyncio.Event()}
        self.thaw()

    def bury(self) -> None:
        """Closes the half-open connections; the servers cannot detect them, since this end still answers."""
        for link in self._stranded:
            link.transport.abort()
        self._stranded.clear()

    def thaw(self) -> None:
        """Lets everything flow again, in order."""
        for flowing in self._flowing.values():
            flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        if self._server is None or not self._server.is_serving():  # cut in the meantime
            writer.transport.abort()
            server_writer.transport.abort()
            return
        self._links |= {writer, server_writer}
        for direction, source, sink in (("up", reader, server_writer), ("down", server_reader, writer)):
            task = asyncio.create_task(self._pump(direction, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        passed, flowing = 0, self._flowing[direction]
        with suppress(OSError, RuntimeError):  # uvloop raises RuntimeError if the sink is closed
            while chunk := await source.read(65536):
                passed += len(chunk)
                if direction == "down" and self.hang_up_after_bytes is not None and passed > self.hang_up_after_bytes:
                    sink.write(chunk[: len(chunk) - (passed - self.hang_up_after_bytes)])
                    self.hang_up_after_bytes = None
                    break
                await asyncio.sleep(self.delay_seconds)
                await flowing.wait()
                sink.write(chunk)
                await sink.drain()
        with suppress(OSError, RuntimeError):
            sink.close()
        self._links.discard(sink)


@asynccontextmanager
async def proxy_to(host: str, port: int) -> AsyncIterator[Proxy]:
    """A running proxy for the block."""
    proxy = Proxy(host, port)
    await proxy.start()
    try:
        yield proxy
    finally:
        proxy.thaw()
        await proxy.cut()
