"""Receives the workers' hints of changes, only while there are followers."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from uuid import uuid4

from aio_pika.abc import AbstractIncomingMessage

from gateway.settings import GatewaySettings
from gateway.telemetry.metrics import HINTS_CONNECTED
from shared.broker import SETUP_TIMEOUT_SECONDS, hints_url_of, keep_running, open_connection
from shared.contracts import decode_hints
from shared.tasks import end_tasks
from shared.topology import Topology, wait_until_lost

LINGER_SECONDS = 60.0
"""How long the queue is kept after the last follower has left."""


class Hints:
    """Passes on the hints that arrive, and reports when some may have been missed."""

    def __init__(
        self, settings: GatewaySettings, on_hints: Callable[[Mapping[int, int]], None], on_gap: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._topology = Topology.of(settings)
        self._on_hints = on_hints
        self._on_gap = on_gap
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        HINTS_CONNECTED.set(0)

    def set_wanted(self, *, wanted: bool) -> None:
        """Connect, or disconnect after a while."""
        start, end = (self._wanted, self._unwanted) if wanted else (self._unwanted, self._wanted)
        start.set()
        end.clear()

    async def run(self) -> None:
        """Receive hints whenever they are wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            session = asyncio.create_task(keep_running(self._session, "inkwell-gateway hints"))
            try:
                await self._wait_until_unwanted()
            finally:
                await end_tasks([session])

    async def _wait_until_unwanted(self) -> None:
        """Return once hints have been unwanted for LINGER_SECONDS."""
        while not self._unwanted.is_set():
            await self._unwanted.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._wanted.wait()

    async def _session(self) -> None:
        async with open_connection(hints_url_of(self._settings.broker_url), "inkwell-gateway hints") as connection:
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                channel = await connection.channel(publisher_confirms=False)
                queue = await self._topology.bind_hints(channel, uuid4().hex)
                await queue.consume(self._on_message, no_ack=True)
            self._on_gap()
            HINTS_CONNECTED.set(1)
            try:
                await wait_until_lost(connection, self._topology.changes_exchange, channel)
            finally:
                HINTS_CONNECTED.set(0)
        raise ConnectionError("the broker closed the channel for hints")

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        self._on_hints(decode_hints(message.body))
