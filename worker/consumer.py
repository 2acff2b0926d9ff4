"""Consumes the partitions: takes what was delivered, has it settled, acknowledges it, replies.

Nothing is acknowledged before its commit. While it holds unacknowledged messages the worker neither cancels a
consumer nor requeues a message, since both give the next ones to somebody else first; it closes the channel.
"""

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.contracts import BadCommand, Command, NewerVersionError, Outcome, Received, Reply, Unreadable, decode_batch
from shared.database import check_schema
from shared.messaging import (
    MAX_BACKOFF_SECONDS,
    SETUP_TIMEOUT_SECONDS,
    Topology,
    jittered,
    keep_running,
    open_connection,
)
from worker.failures import Kind, RepeatedBugError, Settlement, describe, kind_of
from worker.outbox import Outbox
from worker.settings import WorkerSettings

PATIENCE_SECONDS = 15.0
"""How long a batch is tried again before its messages go back to the broker for another worker to try."""

log = structlog.get_logger()


class HandBackError(Exception):
    """The messages in hand must go back to the broker, in order: close the channel."""


@dataclass(slots=True)
class Batch:
    """Some messages in the order of their delivery, and the commands in them."""

    messages: list[AbstractIncomingMessage] = field(default_factory=list)
    received: list[tuple[str | None, Received]] = field(default_factory=list)
    """Each with the address that wants its reply."""

    def add(self, message: AbstractIncomingMessage) -> None:
        """Adds a message; raises NewerVersionError where it needs a newer worker."""
        self.received += [(message.reply_to, received) for received in decode_batch(message.body)]
        self.messages.append(message)

    @property
    def commands(self) -> list[Command | BadCommand]:
        """What can be settled."""
        return [received for _, received in self.received if not isinstance(received, Unreadable)]

    @property
    def unreadable(self) -> list[bytes]:
        """What cannot."""
        return [received.content for _, received in self.received if isinstance(received, Unreadable)]

    def replies(self, outcomes: list[Outcome]) -> dict[str, list[Reply]]:
        """The replies for each gateway, from the outcomes of `commands`."""
        replies: dict[str, list[Reply]] = defaultdict(list)
        settled = [(to, received) for to, received in self.received if not isinstance(received, Unreadable)]
        for (reply_to, command), outcome in zip(settled, outcomes, strict=True):
            if reply_to and not isinstance(command, BadCommand):
                replies[reply_to].append(Reply(attempt_id=command.attempt_id, outcome=outcome))
        return replies


class Deliveries:
    """What the broker delivered on one channel, until the channel or the worker ends."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        self._ended = False

    async def put(self, message: AbstractIncomingMessage) -> None:
        """Keeps a delivery; must not wait before it has, or a later one could overtake."""
        self._messages.put_nowait(message)

    def end(self) -> None:
        """Nothing more is to be taken: what waits here belongs to the broker again."""
        self._ended = True
        self._messages.put_nowait(None)

    async def take(self, commands: int) -> Batch | None:
        """Waits for a message and takes those that are there, up to the one that completes so many commands.

        None when the deliveries have ended. Raises NewerVersionError where a message needs a newer worker.
        """
        batch = Batch()
        message = await self._messages.get()
        while message and not self._ended:
            batch.add(message)
            if self._messages.empty() or len(batch.received) >= commands:
                return batch
            message = self._messages.get_nowait()
        return None


class Consumer:
    """Consumes until told to stop; comes back by itself when the broker or Postgres was away."""

    def __init__(self, settings: WorkerSettings, engine: AsyncEngine) -> None:
        self._settings = settings
        self._engine = engine
        self._topology = Topology(settings.queue_prefix, settings.partitions)
        self._outbox = Outbox(settings.broker_url, self._topology)
        self._settlement = Settlement(engine)
        self._deliveries: Deliveries | None = None
        self._stopping = asyncio.Event()

    @property
    def consuming(self) -> bool:
        """Whether the broker has this worker as a consumer."""
        return self._deliveries is not None

    def stop(self) -> None:
        """Takes no new batch; `run` returns when the one in hand is committed and acknowledged."""
        self._stopping.set()
        if self._deliveries:
            self._deliveries.end()

    async def run(self) -> None:
        """Consumes until `stop`; raises SchemaBehindError where the database lacks migrations."""
        publishing = asyncio.create_task(self._outbox.run())
        try:
            while not self._stopping.is_set():
                await self._wait_for_database()
                await keep_running(self._session, "inkwell-worker consuming")
        finally:
            publishing.cancel()
            await asyncio.wait({publishing})

    async def _wait_for_database(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                async with self._engine.connect() as connection:
                    await check_schema(connection)
                    return
            except (SQLAlchemyError, OSError) as error:
                log.warning(
                    "Postgres does not answer; commands wait in their queues and Inkwell tries again by itself",
                    error=type(error).__name__,
                )
                await self._pause(jittered(failures))
                failures += 1

    async def _session(self) -> None:
        """One channel's life: returns when the worker stops or hands back, raises when the broker ends it."""
        if self._stopping.is_set():
            return
        async with open_connection(self._settings.broker_url, "inkwell-worker consuming") as connection:
            deliveries = Deliveries()
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                channel = await connection.channel(publisher_confirms=False)
                await self._subscribe(channel, deliveries)
            self._deliveries = deliveries
            log.info("consuming", partitions=self._topology.partitions)
            try:
                await self._consume(deliveries)
            finally:
                self._deliveries = None
                async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                    await channel.close()

    async def _subscribe(self, channel: AbstractChannel, deliveries: Deliveries) -> None:
        await self._topology.declare(channel)
        await channel.set_qos(prefetch_count=self._settings.prefetch_messages)
        channel.close_callbacks.add(lambda *_: deliveries.end())
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: deliveries.end())
        for partition in range(self._topology.partitions):
            queue = await channel.get_queue(self._topology.command_queue(partition), ensure=False)
            await queue.consume(deliveries.put)

    async def _consume(self, deliveries: Deliveries) -> None:
        while True:
            try:
                batch = await deliveries.take(self._settings.batch_commands)
                if batch is None:
                    break
                await self._settle(batch)
            except (NewerVersionError, RepeatedBugError) as error:
                log.error(
                    "paused: nothing is lost or failed; upgrade or mend the worker and it goes on by itself",
                    error=f"{type(error).__name__}: {error}",
                )
                await self._pause(MAX_BACKOFF_SECONDS)
                return
            except HandBackError:
                return
        if not self._stopping.is_set():
            raise ConnectionError("the broker ended the deliveries")

    async def _settle(self, batch: Batch) -> None:
        """Settles a batch, then acknowledges it, then replies."""
        started = asyncio.get_running_loop().time()
        outcomes = await self._outcomes(batch.commands)
        for content in batch.unreadable:
            await self._outbox.dead_letter(content)
        await batch.messages[-1].ack(multiple=True)
        for reply_to, replies in batch.replies(outcomes).items():
            await self._outbox.reply(reply_to, replies)
        log.info(
            "batch settled",
            commands=len(outcomes),
            messages=len(batch.messages),
            redelivered=sum(bool(message.redelivered) for message in batch.messages),
            milliseconds=round((asyncio.get_running_loop().time() - started) * 1000, 1),
        )

    async def _outcomes(self, commands: list[Command | BadCommand]) -> list[Outcome]:
        """The committed outcomes; a transient failure is waited out for a while, then handed back."""
        patience_ends = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        failures = 0
        while True:
            try:
                return await self._settlement.settle(commands)
            except Exception as error:
                if kind_of(error) is not Kind.TRANSIENT:
                    raise
                log.warning(
                    "batch not applied; it stays unacknowledged and is tried again",
                    commands=len(commands),
                    error=describe(error),
                )
            await self._pause(jittered(failures))
            failures += 1
            if self._stopping.is_set() or asyncio.get_running_loop().time() > patience_ends:
                raise HandBackError

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
