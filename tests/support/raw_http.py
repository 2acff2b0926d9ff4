"""Raw HTTP: sends the test's bytes on a connection of its own and parses the responses."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httptools
import httpx


@dataclass
class Response:
    """One response."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Responses:
    """Parses what a server sends; `complete` are the responses so far. Not for responses to HEAD."""

    def __init__(self) -> None:
        self.complete: list[Response] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._response = Response()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._response.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self._response.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._response.body += body

    def on_message_complete(self) -> None:
        if self._response.status >= 200:  # not 100 Continue
            self.complete.append(self._response)


@asynccontextmanager
async def connected(gateway: httpx.AsyncClient) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection; the block fails after a minute."""
    stream, writer = await asyncio.open_connection(gateway.base_url.host, gateway.base_url.port)
    try:
        async with asyncio.timeout(60):
            yield stream, writer
    finally:
        writer.close()


def segments(data: bytes, size: int) -> Iterator[bytes]:
    """The data in pieces of this size."""
    return (data[start : start + size] for start in range(0, len(data), size))


async def exchange(gateway: httpx.AsyncClient, data: bytes, size: int = 1 << 20) -> list[Response]:
    """Send the data in segments and return all responses up to the end of the connection.

    The data must make the gateway close it.
    """
    async with connected(gateway) as (stream, writer):
        receiving = asyncio.create_task(up_to_the_end(stream))
        with suppress(ConnectionError):
            for segment in segments(data, size):
                writer.write(segment)
                await writer.drain()
                await asyncio.sleep(0)
        received = await receiving
    responses = Responses()
    responses.feed(received)
    return responses.complete


async def up_to_the_end(stream: asyncio.StreamReader) -> bytes:
    """Everything received until the connection ends, possibly by a reset, since data are always in flight."""
    received = b""
    with suppress(ConnectionResetError, BrokenPipeError):
        while part := await stream.read(1 << 16):
            received += part
    return received
