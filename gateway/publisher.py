"""Publishes commands with group commit: what is pending for a partition becomes one message.

While its confirm is awaited the next message gathers, so there is no timer and a burst costs few messages.
Until hand-over a command can be withdrawn. From then on only a nack or a return tells that it was not accepted;
a timeout or a lost channel leaves it unconfirmed. Nothing is ever published twice from here.
"""

import asyncio
from collections.abc import Iterable
from contextvars import copy_context

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import DeliveryError, PublishError

from gateway.metrics import BACKLOG_BYTES, BACKLOG_COMMANDS, CONFIRM_DURATION, PUBLISHED_COMMANDS
from gateway.replies import Attempt, Replies
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.contracts import (
    COMMANDS_CONTENT_TYPE,
    MAX_COMMAND_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGE_COMMANDS,
    encode_batch,
    weight,
)
from shared.errors import describe
from shared.messaging import (
    BROKER_ERRORS,
    LOST_CHECK_SECONDS,
    REPLY_TO,
    SETUP_TIMEOUT_SECONDS,
    Topology,
    is_blocked,
    is_open,
    keep_running,
    open_connection,
    until_lost,
)
from shared.metrics import BROKER_CONNECTED

log = structlog.get_logger()


class NotAcceptedError(Exception):
    """The broker does not have the command and never will: it has no effect."""


class OverloadedError(NotAcceptedError):
    """Nor has it room for it."""


class TooLargeError(NotAcceptedError):
    """The command exceeds the broker's message limit; publishing it would close the channel for all others."""


class UnconfirmedError(Exception):
    """Nobody can tell whether the broker has the command."""


class Backlog:
    """A partition's attempts that the broker has not been handed, in order."""

    def __init__(self) -> None:
        self._attempts: dict[Attempt, None] = {}
        self.size = 0
        """Bytes."""

    def __len__(self) -> int:
        return len(self._attempts)

    def add(self, attempt: Attempt) -> None:
        """Puts an attempt at the end."""
        self._attempts[attempt] = None
        self.size += len(attempt.encoded)

    def withdraw(self, attempt: Attempt) -> None:
        """Takes an attempt out, if it is still there."""
        if attempt in self._attempts:
            del self._attempts[attempt]
            self.size -= len(attempt.encoded)

    def take(self) -> list[Attempt]:
        """Takes the next message's attempts out and marks them as handed over."""
        batch: list[Attempt] = []
        size = writes = 0
        for attempt in self._attempts:
            size += len(attempt.encoded) + 1
            writes += weight(attempt.command)
            if batch and (size > MAX_MESSAGE_BYTES or writes > MAX_MESSAGE_COMMANDS):
                break
            batch.append(attempt)
        for attempt in batch:
            self.withdraw(attempt)
            attempt.handed_over = True
        return batch


class Publisher:
    """Hands attempts over to the broker while its `run` is under way and the broker is there."""

    def __init__(self, settings: GatewaySettings, replies: Replies, clock: Clock) -> None:
        self._broker_url = settings.broker_url
        self._timeout_seconds = settings.publish_timeout_seconds
        self._topology = Topology.of(settings)
        self._replies = replies
        self._clock = clock
        self._backlog_limit_bytes = settings.backlog_limit_bytes
        self._backlogs = [Backlog() for _ in range(settings.partitions)]
        self._flushing: dict[int, asyncio.Task[None]] = {}
        self._channel: AbstractChannel | None = None
        self._connection: AbstractConnection | None = None
        self._connected = asyncio.Event()
        self._context = copy_context()
        """Not that of the request which comes first: a message has the commands of many."""
        BACKLOG_COMMANDS.set_function(lambda: sum(map(len, self._backlogs)))
        BACKLOG_BYTES.set_function(self._backlog_bytes)

    @property
    def connected(self) -> bool:
        """Whether commands can be handed over now."""
        return self._connected.is_set()

    async def publish(self, attempt: Attempt) -> None:
        """Returns when the broker has confirmed the attempt's command, or its outcome came first.

        Raises TooLargeError, OverloadedError, NotAcceptedError or UnconfirmedError, at the latest after the publish
        timeout.
        """
        if len(attempt.encoded) > MAX_COMMAND_BYTES:
            raise TooLargeError
        waiting = self._backlog_bytes()
        if waiting and waiting + len(attempt.encoded) > self._backlog_limit_bytes:  # an empty one takes any command
            raise OverloadedError
        partition = self._topology.partition_of(attempt.command.owner)
        self._backlogs[partition].add(attempt)
        if partition not in self._flushing:
            self._flushing[partition] = asyncio.create_task(self._flush(partition), context=self._context.copy())
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await attempt.confirmed
        except TimeoutError:
            self._backlogs[partition].withdraw(attempt)
            raise (UnconfirmedError if attempt.handed_over else NotAcceptedError) from None

    async def run(self) -> None:
        """Keeps a connection until cancelled."""
        await keep_running(self._session, "inkwell-gateway")

    async def drain(self, timeout_seconds: float) -> None:
        """Waits until every backlog is handed over and confirmed, but not longer than this."""
        if self._flushing:
            _, late = await asyncio.wait(self._flushing.values(), timeout=timeout_seconds)
            for task in late:
                task.cancel()

    async def _session(self) -> None:
        async with open_connection(self._broker_url, "inkwell-gateway") as connection:
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                await self._replies.listen(channel)
            await self._topology.until_declared(channel)
            self._channel, self._connection = channel, connection
            self._connected.set()
            BROKER_CONNECTED.set(1)
            log.info("publishing", partitions=self._topology.partitions)
            try:
                await until_lost(connection, self._topology, channel)
            finally:
                self._connected.clear()
                BROKER_CONNECTED.set(0)
                self._replies.look_up_now()
        raise ConnectionError("the broker closed the channel")

    async def _flush(self, partition: int) -> None:
        """Publishes a partition's backlog, message by message, until it is empty."""
        backlog = self._backlogs[partition]
        try:
            while backlog:
                await self._connected.wait()
                if not await self._is_open():
                    await asyncio.sleep(LOST_CHECK_SECONDS)
                elif batch := backlog.take():
                    await self._hand_over(partition, batch)
        finally:
            del self._flushing[partition]

    def _backlog_bytes(self) -> int:
        return sum(backlog.size for backlog in self._backlogs)

    async def _is_open(self) -> bool:
        """Whether the broker takes messages: while an alarm blocks the connection, commands can be withdrawn."""
        if self._connection is None or self._channel is None or await is_blocked(self._connection):
            return False
        return self._connected.is_set() and is_open(self._connection) and not self._channel.is_closed

    async def _hand_over(self, partition: int, batch: list[Attempt]) -> None:
        message = Message(
            encode_batch(attempt.encoded for attempt in batch),
            content_type=COMMANDS_CONTENT_TYPE,
            delivery_mode=DeliveryMode.PERSISTENT,
            timestamp=self._clock.now(),
            reply_to=REPLY_TO,
        )
        PUBLISHED_COMMANDS.observe(len(batch))
        try:
            with CONFIRM_DURATION.time():
                await self._publish(message, partition)
        except DeliveryError as error:  # a nack, or a return: the broker's word that it has none of them
            log.warning("commands refused by the broker", commands=len(batch), error=describe(error))
            _refuse(batch, NotAcceptedError if isinstance(error, PublishError) else OverloadedError)
        except BROKER_ERRORS as error:
            log.warning("commands unconfirmed", commands=len(batch), error=describe(error))
        else:
            for attempt in batch:
                attempt.confirm()
        finally:
            _refuse(batch, UnconfirmedError)  # whoever has no answer yet, whatever happened

    async def _publish(self, message: Message, partition: int) -> None:
        if self._channel is None:
            raise ConnectionError("not connected to the broker")
        async with asyncio.timeout(self._timeout_seconds):
            await self._topology.publish(self._channel, message, partition)


def _refuse(batch: Iterable[Attempt], error: type[Exception]) -> None:
    for attempt in batch:
        attempt.refuse(error())
