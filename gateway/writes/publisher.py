"""Publishes commands with group commit: the pending commands of a partition become one message.

The next message gathers while the last one's confirm is awaited, so there is no timer and a burst costs few messages.
A command can be withdrawn until it is handed over. After that only a nack or a return means that it was not accepted;
a timeout or a lost channel leaves it unconfirmed. The publisher never publishes a command twice.
"""

import asyncio
from collections.abc import Iterable
from contextvars import copy_context

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import DeliveryError, PublishError

from gateway.settings import GatewaySettings
from gateway.telemetry.metrics import BACKLOG_BYTES, BACKLOG_COMMANDS, CONFIRM_DURATION, PUBLISHED_COMMANDS
from gateway.writes.replies import Attempt, Replies
from shared.broker import (
    BROKER_ERRORS,
    REPLY_TO,
    SETUP_TIMEOUT_SECONDS,
    PartitionsDifferError,
    is_blocked,
    is_open,
    keep_running,
    open_connection,
)
from shared.clock import Clock
from shared.contracts import (
    COMMANDS_CONTENT_TYPE,
    MAX_COMMAND_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGE_COMMANDS,
    count_writes,
    encode_batch,
)
from shared.errors import describe_error
from shared.metrics import BROKER_CONNECTED
from shared.partitions import require_equal, wait_until_changed, wait_until_declared
from shared.topology import LOST_CHECK_SECONDS, Topology, wait_until_lost

log = structlog.get_logger()


class NotAcceptedError(Exception):
    """The broker does not have the command and never will: the write has no effect."""


class OverloadedError(NotAcceptedError):
    """The backlog or the queue is full."""


class TooLargeError(NotAcceptedError):
    """The command exceeds the broker's message limit; publishing it would close the channel for all others."""


class UnconfirmedError(Exception):
    """It is unknown whether the broker has the command."""


class Backlog:
    """A partition's attempts that are not yet handed over to the broker, in order."""

    def __init__(self) -> None:
        self._attempts: dict[Attempt, None] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._attempts)

    def add(self, attempt: Attempt) -> None:
        """Append an attempt."""
        self._attempts[attempt] = None
        self.size_bytes += len(attempt.encoded)

    def withdraw(self, attempt: Attempt) -> None:
        """Remove an attempt, if it is still there."""
        if attempt in self._attempts:
            del self._attempts[attempt]
            self.size_bytes -= len(attempt.encoded)

    def take(self) -> list[Attempt]:
        """Remove the next message's attempts and mark them as handed over."""
        taken: list[Attempt] = []
        size_bytes = writes = 0
        for attempt in self._attempts:
            size_bytes += len(attempt.encoded) + 1
            writes += count_writes(attempt.command)
            if taken and (size_bytes > MAX_MESSAGE_BYTES or writes > MAX_MESSAGE_COMMANDS):
                break
            taken.append(attempt)
        for attempt in taken:
            self.withdraw(attempt)
            attempt.handed_over = True
        return taken

    def withdraw_all(self) -> list[Attempt]:
        """Remove and return all attempts."""
        attempts = list(self._attempts)
        self._attempts.clear()
        self.size_bytes = 0
        return attempts


class Publisher:
    """Hands attempts over to the broker while `run` runs and the broker is available."""

    def __init__(self, settings: GatewaySettings, replies: Replies, clock: Clock) -> None:
        self._settings = settings
        self._timeout_seconds = settings.publish_timeout_seconds
        self._topology = Topology.of(settings)
        self._replies = replies
        self._clock = clock
        self._backlog_limit_bytes = settings.backlog_limit_bytes
        self._backlogs = [Backlog() for _ in range(self._topology.partitions)]
        self._unassigned = Backlog()
        """The attempts queued before the number of partitions is known."""
        self._are_partitions_different = False
        self._flushing: dict[int, asyncio.Task[None]] = {}
        self._channel: AbstractChannel | None = None
        self._connection: AbstractConnection | None = None
        self._connected = asyncio.Event()
        self._blocked = False
        self._confirmed_at: dict[int, float] = {}
        """When the current connection last confirmed a message of each partition."""
        self._is_silent = asyncio.Event()
        """Set to reconnect, to another node if the URL names several."""
        self._context = copy_context()
        """Used instead of the first request's context, since a message has the commands of many requests."""
        BACKLOG_COMMANDS.set_function(lambda: sum(map(len, self._all_backlogs())))
        BACKLOG_BYTES.set_function(self._backlog_bytes)

    @property
    def topology(self) -> Topology:
        """The topology that commands are published to."""
        return self._topology

    @property
    def state(self) -> str:
        """`up` while commands can be handed over; otherwise the reason in short."""
        if self._are_partitions_different:
            return "partitions differ"
        return "up" if self._connected.is_set() else "down"

    async def publish(self, attempt: Attempt) -> None:
        """Publish the attempt's command and wait for the confirm, or for its outcome if that comes first.

        Raises TooLargeError, OverloadedError, NotAcceptedError or UnconfirmedError, at the latest after the publish
        timeout.
        """
        if len(attempt.encoded) > MAX_COMMAND_BYTES:
            raise TooLargeError
        waiting = self._backlog_bytes()
        if waiting and waiting + len(attempt.encoded) > self._backlog_limit_bytes:  # an empty one takes any command
            raise OverloadedError
        if self._are_partitions_different:
            raise NotAcceptedError
        self._add(attempt)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await attempt.confirmed
        except TimeoutError:
            for backlog in self._all_backlogs():
                backlog.withdraw(attempt)
            raise (UnconfirmedError if attempt.handed_over else NotAcceptedError) from None

    def _add(self, attempt: Attempt) -> None:
        """Append the attempt to its partition's backlog, which is flushed from then on."""
        if not self._topology.partitions:
            self._unassigned.add(attempt)
            return
        partition = self._topology.partition_of(attempt.command.owner)
        self._backlogs[partition].add(attempt)
        if partition not in self._flushing:
            self._flushing[partition] = asyncio.create_task(self._flush(partition), context=self._context.copy())

    def _adopt(self, topology: Topology) -> None:
        """Publish to this topology from now on, also what already waits; raises PartitionsDifferError."""
        waiting = self._withdraw_all()
        try:
            require_equal(self._settings, topology)
        except PartitionsDifferError:
            self._are_partitions_different = True
            _fail(waiting, NotAcceptedError)
            raise
        self._are_partitions_different = False
        self._topology = topology
        # Never shortened: a flush that was created but has not begun finds its backlog by index.
        self._backlogs += [Backlog() for _ in range(topology.partitions - len(self._backlogs))]
        for attempt in waiting:
            self._add(attempt)

    def _all_backlogs(self) -> Iterable[Backlog]:
        return self._unassigned, *self._backlogs

    def _withdraw_all(self) -> list[Attempt]:
        return [attempt for backlog in self._all_backlogs() for attempt in backlog.withdraw_all()]

    async def run(self) -> None:
        """Keep a connection until cancelled."""
        await keep_running(self._session, "inkwell-gateway")

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until every backlog is handed over and confirmed, or the timeout is over."""
        if self._flushing:
            _, late = await asyncio.wait(self._flushing.values(), timeout=timeout_seconds)
            for task in late:
                task.cancel()

    async def _session(self) -> None:
        async with open_connection(self._settings.broker_url, "inkwell-gateway") as connection:
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                await self._replies.listen(channel)
            self._adopt(await wait_until_declared(channel, self._topology))
            self._channel = channel
            self._connection = connection
            self._confirmed_at.clear()
            self._is_silent.clear()
            self._connected.set()
            BROKER_CONNECTED.set(1)
            log.info("publishing", partitions=self._topology.partitions)
            try:
                await self._wait_until_lost_or_silent(connection, channel)
            finally:
                self._connected.clear()
                BROKER_CONNECTED.set(0)
                self._replies.look_up_now()
        raise ConnectionError("the broker closed the channel, confirms nothing on it, or has other partitions")

    async def _wait_until_lost_or_silent(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        waits = [
            asyncio.create_task(wait_until_lost(connection, self._topology.commands_exchange, channel)),
            asyncio.create_task(self._is_silent.wait()),
            asyncio.create_task(wait_until_changed(connection, self._topology)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    async def _flush(self, partition: int) -> None:
        """Publish a partition's backlog, message by message, until it is empty."""
        backlog = self._backlogs[partition]
        try:
            while backlog:
                await self._connected.wait()
                if await self._is_blocked():
                    _fail(backlog.withdraw_all(), NotAcceptedError)
                elif not self._is_open():
                    await asyncio.sleep(LOST_CHECK_SECONDS)
                elif attempts := backlog.take():
                    await self._hand_over(partition, attempts)
        finally:
            del self._flushing[partition]

    def _backlog_bytes(self) -> int:
        return sum(backlog.size_bytes for backlog in self._all_backlogs())

    async def _is_blocked(self) -> bool:
        """Whether an alarm of the broker blocks the connection, usually for longer than a client can wait."""
        was_blocked = self._blocked
        connection = self._connection
        self._blocked = connection is not None and is_open(connection) and await is_blocked(connection)
        if self._blocked and not was_blocked:
            log.warning(
                "RabbitMQ is short of memory or disk; writes are refused",
                remedy="`rabbitmq-diagnostics alarms` says which; see docs/runbook.md#inkwellbrokeralarm",
            )
        return self._blocked

    def _is_open(self) -> bool:
        if self._connection is None or self._channel is None:
            return False
        return self._connected.is_set() and is_open(self._connection) and not self._channel.is_closed

    async def _hand_over(self, partition: int, attempts: list[Attempt]) -> None:
        message = Message(
            encode_batch(attempt.encoded for attempt in attempts),
            content_type=COMMANDS_CONTENT_TYPE,
            delivery_mode=DeliveryMode.PERSISTENT,
            timestamp=self._clock.now(),
            reply_to=REPLY_TO,
        )
        PUBLISHED_COMMANDS.observe(len(attempts))
        now = asyncio.get_running_loop().time
        handed_over_at = now()
        try:
            with CONFIRM_DURATION.time():
                await self._publish(message, partition)
        except DeliveryError as error:
            # A return (PublishError: no queue) or a nack (full): the broker has none of the commands.
            log.warning("commands refused by the broker", commands=len(attempts), error=describe_error(error))
            _fail(attempts, NotAcceptedError if isinstance(error, PublishError) else OverloadedError)
        except BROKER_ERRORS as error:
            log.warning("commands unconfirmed", commands=len(attempts), error=describe_error(error))
            if isinstance(error, TimeoutError) and not await self._is_blocked():
                self._check_silence(partition, handed_over_at)
        else:
            self._confirmed_at[partition] = now()
            for attempt in attempts:
                attempt.confirm()
        finally:
            _fail(attempts, UnconfirmedError)  # no effect on those settled above; also reached by a cancellation

    def _check_silence(self, partition: int, since: float) -> None:
        """Reconnect if nothing was confirmed in time, or nothing more of a partition.

        A node cut off from the others still answers probes; its channels confirm nothing, even once it has rejoined.
        """
        if partition in self._confirmed_at or not any(at > since for at in self._confirmed_at.values()):
            self._is_silent.set()

    async def _publish(self, message: Message, partition: int) -> None:
        if self._channel is None:
            raise ConnectionError("not connected to the broker")
        async with asyncio.timeout(self._timeout_seconds):
            await self._topology.publish(self._channel, message, partition)


def _fail(attempts: Iterable[Attempt], error: type[Exception]) -> None:
    for attempt in attempts:
        attempt.fail(error())
