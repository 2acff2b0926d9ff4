"""Sends hints after commits: which owners are at which revision, for gateways whose clients follow changes.

A hint may be lost, and no batch waits for one. The sender has a connection of its own, so that neither a broker that
blocks it nor a user without the right to publish hints affects replies.
"""

import asyncio
from collections.abc import Mapping

import structlog
from aiormq.abc import AbstractChannel
from pydantic import Secret

from shared.broker import BROKER_ERRORS, SETUP_TIMEOUT_SECONDS, broker_call, hints_url_of, keep_running, open_connection
from shared.broker_url import BrokerUrl
from shared.contracts import MAX_HINTS, encode_hints
from shared.errors import describe_error
from shared.tasks import end_tasks
from shared.topology import Topology, wait_until_lost
from worker.metrics import HINTS_DROPPED

SEND_TIMEOUT_SECONDS = 1.0
PAUSE_SECONDS = 0.02
"""The pause after a message; the hints that arrive meanwhile share the next one."""

log = structlog.get_logger()


class HintSender:
    """Sends while `run` runs and is connected to the broker; meanwhile keeps the newest revision of each owner."""

    def __init__(self, broker_url: Secret[BrokerUrl], topology: Topology) -> None:
        self._hints_url = hints_url_of(broker_url)
        self._topology = topology
        self._pending: dict[int, int] = {}
        self._has_pending = asyncio.Event()

    def announce(self, revisions: Mapping[int, int]) -> None:
        """Send the owners' revisions soon, in one message with all other pending ones."""
        self._pending.update(revisions)
        if len(self._pending) > MAX_HINTS:
            HINTS_DROPPED.inc(len(self._pending))
            self._pending.clear()
        elif revisions:
            self._has_pending.set()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        await keep_running(self._session, "inkwell-worker hints")

    async def _session(self) -> None:
        async with open_connection(self._hints_url, "inkwell-worker hints") as connection:
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                channel = await connection.channel(publisher_confirms=False)
                await self._topology.declare_changes(channel)
            sending = asyncio.create_task(self._send(await channel.get_underlay_channel()))
            try:
                await wait_until_lost(connection, self._topology.changes_exchange, channel)
            finally:
                await end_tasks([sending])
        raise ConnectionError("the broker closed the channel for hints")

    async def _send(self, channel: AbstractChannel) -> None:
        """Send what is pending, message by message, until cancelled."""
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            revisions = self._pending
            self._pending = {}
            try:
                async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                    with broker_call():
                        await channel.basic_publish(encode_hints(revisions), exchange=self._topology.changes_exchange)
            except BROKER_ERRORS as error:
                log.info("hints delayed: the broker does not accept them", error=describe_error(error))
                self.announce(revisions | self._pending)
                await asyncio.sleep(SEND_TIMEOUT_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
