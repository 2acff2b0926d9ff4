"""Sends replies, which may be lost, and unreadable messages, which must not be lost.

It has a connection of its own: the broker throttles connections that publish, and must not throttle the consumer.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel
from pydantic import Secret

from shared.broker import (
    BROKER_ERRORS,
    CLOSE_TIMEOUT_SECONDS,
    SETUP_TIMEOUT_SECONDS,
    broker_call,
    broker_version,
    keep_running,
    open_connection,
)
from shared.broker_url import BrokerUrl
from shared.contracts import LARGEST_MESSAGE_BYTES, Reply, encode_replies
from shared.errors import describe_error
from shared.partitions import find_partitions
from shared.primary import TIMELINE_HEADER, Primary
from shared.topology import Topology, wait_until_lost
from worker.reply_addresses import is_reply_address

REPLY_TIMEOUT_SECONDS = 1.0
MAX_REPLY_BYTES = 256 * 1024

log = structlog.get_logger()


class ReplySender:
    """Sends while `run` runs and is connected to the broker."""

    def __init__(self, broker_url: Secret[BrokerUrl], topology: Topology, primary: Primary) -> None:
        self._broker_url = broker_url
        self._topology = topology
        self._primary = primary
        self._replies: AbstractChannel | None = None
        self._unreadable: AbstractChannel | None = None
        self._broker_version = "0.0"

    async def run(self) -> None:
        """Stay connected until cancelled."""
        await keep_running(self._session, "inkwell-worker publishing")

    async def _session(self) -> None:
        async with open_connection(self._broker_url, "inkwell-worker publishing") as connection:
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                replies = await connection.channel(publisher_confirms=False)
                confirmed = await connection.channel(publisher_confirms=True, on_return_raises=True)
                await self._topology.declare_unreadable(confirmed)
                if found := await find_partitions(confirmed, self._topology):
                    await found.bind_existing(confirmed)
                self._broker_version = await broker_version(confirmed)
            self._replies = replies
            self._unreadable = confirmed
            try:
                await wait_until_lost(connection, self._topology.commands_exchange, confirmed)
            finally:
                self._replies = self._unreadable = None
        raise ConnectionError("the broker closed the publishing channel")

    async def reply(self, reply_to: str, replies: Sequence[Reply]) -> None:
        """Send a gateway the committed outcomes; drops a reply that cannot be sent, since the gateway can read them."""
        if not is_reply_address(reply_to, self._broker_version):
            log.warning("reply dropped; its address is not a gateway's", replies=len(replies))
            return
        body = encode_replies(replies)
        if len(body) > MAX_REPLY_BYTES:
            body = encode_replies([Reply(attempt_id=reply.attempt_id, outcome=None) for reply in replies])
        message = Message(body, headers={TIMELINE_HEADER: str(self._primary.timeline or "")})
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_SECONDS):
                await self._publish(self._replies, message, reply_to, mandatory=False)
        except BROKER_ERRORS as error:
            log.info("reply dropped; the gateway looks its commands up", error=describe_error(error))

    async def send_unreadable(self, content: bytes) -> None:
        """Publish content that cannot be read to its queue, confirmed; raises a broker error.

        Content above the broker's limit for a message is truncated.
        """
        message = Message(content[:LARGEST_MESSAGE_BYTES], delivery_mode=DeliveryMode.PERSISTENT)
        channel = self._unreadable
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                if channel:
                    with broker_call():
                        await self._topology.declare_unreadable(channel)  # an operator may have deleted it
                await self._publish(channel, message, self._topology.unreadable_queue, mandatory=True)
        except TimeoutError:
            if channel:  # this node may be cut off from the others, and confirm nothing: reconnect
                with suppress(*BROKER_ERRORS):
                    async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                        with broker_call():
                            await channel.close()
            raise
        log.error(
            "unreadable message moved to the queue of unreadable messages",
            bytes=len(content),
            bytes_kept=len(message.body),
        )

    async def _publish(self, channel: AbstractChannel | None, message: Message, queue: str, *, mandatory: bool) -> None:
        if channel is None:
            raise ConnectionError("not connected to the broker")
        with broker_call():
            await channel.default_exchange.publish(message, queue, mandatory=mandatory)
