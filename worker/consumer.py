"""Consumes the partitions: takes deliveries, applies them, acknowledges them, and replies.

Nothing is acknowledged before its commit. While it holds unacknowledged messages the worker neither cancels a
consumer nor requeues a message, since either gives the next ones to another worker first; it closes the channel.
"""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

import asyncpg
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection

from shared.clock import Clock
from shared.connections import Connections
from shared.contracts import LARGEST_MESSAGE_BYTES
from shared.database import check_schema
from shared.messaging import (
    BROKER_ERRORS,
    CLOSE_TIMEOUT_SECONDS,
    PROBE_TIMEOUT_SECONDS,
    SETUP_TIMEOUT_SECONDS,
    PartitionsDifferError,
    Topology,
    broker_call,
    choose_backoff,
    keep_running,
    open_connection,
    user_of,
    wait_until_lost,
)
from shared.metrics import BROKER_CONNECTED
from shared.partitions import claim_partitions, wait_until_changed
from worker.deliveries import Batch, Deliveries, PartitionBlockedError
from worker.failures import Applier, RepeatedBugError, describe
from worker.metrics import OLDEST, PARTITIONS, PAUSED, count_applied
from worker.partition_assignment import PartitionAssignment
from worker.queue_check import wait_for_correct_queue
from worker.reply_sender import ReplySender
from worker.retry import HandBackError, OwnersLockedError, apply_with_retries, pause
from worker.settings import WorkerSettings
from worker.traces import processing

BATCH_TIMEOUT_SECONDS = 120.0
"""A batch that takes longer is stuck, for whatever reason; its session is abandoned."""
BLOCKED_PAUSE_SECONDS = 30.0
HELD_BYTES = 512 * 1024 * 1024
"""Limit on unacknowledged messages in memory, assuming that each has the broker's maximum size."""
WATCH_INTERVAL_SECONDS = 5.0
FORGOTTEN_CHECKS = 5
"""Checks in a row without a consumer; with `net_ticktime = 15` a queue whose leader hangs has a new one by then.

Subscribing again earlier would do harm: the broker may then activate a consumer at the node that hangs, and keep it.
"""

log = structlog.get_logger()


class Consumer:
    """Consumes until stopped; recovers by itself after the broker or Postgres was unavailable."""

    def __init__(self, settings: WorkerSettings, connections: Connections) -> None:
        self._settings = settings
        self._topology = Topology.of(settings)
        self._reply_sender = ReplySender(settings.broker_url, self._topology, connections.primary)
        self._applier = Applier(connections, timedelta(days=settings.command_max_age_days))
        self._user = user_of(settings.broker_url)
        self._deliveries = Deliveries(self._user)
        self._clock = Clock()
        self._assignment = PartitionAssignment(settings, self._clock, self._subscribe_anew)
        self._holding: dict[int, asyncio.Event] = {}
        """The partitions that this worker subscribes to; the event of each ends its subscription."""
        self._blocked: set[int] = set()
        self._refused: set[int] = set()
        self._are_partitions_different = False
        self._stopping = asyncio.Event()
        self._batch_since: float | None = None
        self._oldest_in_hand: datetime | None = None

    @property
    def topology(self) -> Topology:
        """The queues that this worker consumes; with the broker's number of partitions once it has connected."""
        return self._topology

    @property
    def partitions(self) -> set[int]:
        """The partitions for which the broker has this worker as a consumer."""
        return set(self._holding)

    @property
    def refused(self) -> set[int]:
        """The partitions that this worker does not consume, because their queues were declared with other arguments."""
        return set(self._refused)

    @property
    def are_partitions_different(self) -> bool:
        """Whether this worker consumes nothing, because its setting names another number of partitions."""
        return self._are_partitions_different

    @property
    def slot(self) -> int | None:
        """This worker's number among the workers, or None before it has one."""
        return self._assignment.slot

    @property
    def stuck(self) -> bool:
        """Whether a batch has been in hand for longer than its timeout should allow."""
        now = asyncio.get_running_loop().time()
        return self._batch_since is not None and now - self._batch_since > 2 * BATCH_TIMEOUT_SECONDS

    def look(self) -> None:
        """Update the metrics that no event updates."""
        PARTITIONS.set(len(self._holding))
        PAUSED.labels("newer_version").set(bool(self._blocked))
        since = [each for each in (self._deliveries.oldest, self._oldest_in_hand) if each]
        OLDEST.set((self._clock.now() - min(since)).total_seconds() if since else 0)
        self._clock.report()

    def stop(self) -> None:
        """Take no new batch; `run` returns when the one in hand is committed and acknowledged."""
        self._stopping.set()
        self._deliveries.end()

    async def run(self) -> None:
        """Consume until `stop`; raises SchemaBehindError if the database lacks migrations."""
        beside = [asyncio.create_task(self._reply_sender.run()), asyncio.create_task(self._assignment.run())]
        try:
            while not self._stopping.is_set():
                await self._wait_for_database()
                await self._assignment.first_slot()
                await keep_running(self._session, "inkwell-worker consuming")
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)

    def _subscribe_anew(self) -> None:
        """End the session between two batches; the next one subscribes with the priorities of the new slot."""
        self._deliveries.end()

    async def _wait_for_database(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                await check_schema(self._settings.database_url, "inkwell-worker")
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                log.warning(
                    "Postgres does not answer; commands wait in their queues and Inkwell tries again by itself",
                    error=describe(error),
                )
                await pause(self._stopping, choose_backoff(failures))
                failures += 1
            else:
                return

    async def _session(self) -> None:
        """Consume on one connection; returns when the worker stops or hands back, raises when the broker ends it."""
        if self._stopping.is_set():
            return
        async with open_connection(self._settings.broker_url, "inkwell-worker consuming") as connection:
            await self._adopt_partitions(connection)
            deliveries = self._deliveries = Deliveries(self._user)
            self._applier.forget()
            priorities = self._assignment.priorities
            if self._stopping.is_set():  # while it connected
                return
            holders = [
                asyncio.create_task(
                    keep_running(partial(self._hold, connection, partition, priority), f"partition {partition}")
                )
                for partition, priority in enumerate(priorities)
            ]
            lost = asyncio.create_task(wait_until_lost(connection, self._topology))
            changed = asyncio.create_task(wait_until_changed(connection, self._topology))
            for ended in (lost, changed):
                ended.add_done_callback(lambda _: deliveries.end())
            BROKER_CONNECTED.set(1)
            try:
                await self._consume(deliveries, priorities)
            finally:
                BROKER_CONNECTED.set(0)
                for task in (lost, changed, *holders):
                    task.cancel()
                await asyncio.wait([lost, changed, *holders])

    async def _adopt_partitions(self, connection: AbstractConnection) -> None:
        """Adopt the broker's number of partitions; raises PartitionsDifferError if the setting names another."""
        try:
            self._topology = await claim_partitions(connection, self._settings)
        except PartitionsDifferError:
            self._are_partitions_different = True
            raise
        self._are_partitions_different = False
        self._assignment.partitions = self._topology.partitions

    async def _hold(self, connection: AbstractConnection, partition: int, priority: int) -> None:
        """Subscribe to a partition until it must be released; raises when the broker ends the subscription."""
        if partition in self._blocked:
            await asyncio.sleep(BLOCKED_PAUSE_SECONDS)
            self._blocked.discard(partition)
        let_go = asyncio.Event()
        try:
            await wait_for_correct_queue(connection, self._topology, partition, self._refused)
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                channel = await connection.channel(publisher_confirms=False)
                await self._subscribe(channel, partition, priority, let_go)
        except TimeoutError:  # as at a node that is cut off from the others: the next connection may lead to another
            self._deliveries.end()
            raise
        self._holding[partition] = let_go
        log.info("consuming", partition=partition)
        try:
            await self._watch(channel, partition, let_go)
        except TimeoutError:  # the broker has silently gone, and the whole connection with it
            self._deliveries.end()
            raise
        finally:
            del self._holding[partition]
            self._deliveries.drop(partition)
            with suppress(*BROKER_ERRORS):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await channel.close()
        raise ConnectionError("the broker ended the subscription")

    async def _subscribe(self, channel: AbstractChannel, partition: int, priority: int, let_go: asyncio.Event) -> None:
        await channel.set_qos(prefetch_count=prefetch_count(self._settings, self._topology.partitions))
        channel.close_callbacks.add(lambda *_: let_go.set())
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: let_go.set())
        queue = await channel.get_queue(self._topology.command_queue(partition), ensure=False)
        await queue.consume(
            self._deliveries.receiver(partition),
            arguments={"x-priority": priority},
            consumer_tag=f"slot-{self.slot}",  # shown in the broker's list of consumers
        )

    async def _watch(self, channel: AbstractChannel, partition: int, let_go: asyncio.Event) -> None:
        """Return when the subscription has ended, even if the broker did not say so."""
        uncounted = 0
        while not let_go.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(let_go.wait(), WATCH_INTERVAL_SECONDS)
                return
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                queue = await channel.declare_queue(self._topology.command_queue(partition), passive=True)
            # A node that does not reach the queue's leader reports no consumers, although the subscription stands.
            uncounted = 0 if queue.declaration_result.consumer_count else uncounted + 1
            if uncounted == FORGOTTEN_CHECKS:
                log.warning("the broker has forgotten this consumer; subscribing again", partition=partition)
                return

    async def _consume(self, deliveries: Deliveries, priorities: list[int]) -> None:
        while True:
            try:
                if parked := deliveries.due():
                    await self._apply(deliveries.unpark(await self._applier.find_locked(parked)))
                batch = await deliveries.take(self._settings.batch_commands)
                if batch is None:
                    break
                await self._apply(batch)
            except PartitionBlockedError as error:
                self._let_go(error)
            except RepeatedBugError as error:
                log.error(
                    "paused: several commands fail in the same way, and no more of them are failed; "
                    "mend the cause and the worker goes on by itself",
                    error=str(error),
                )
                PAUSED.labels("repeated_bug").set(1)
                await pause(self._stopping, BLOCKED_PAUSE_SECONDS / 6)
                return
            except HandBackError:
                return
        if not self._stopping.is_set() and self._assignment.priorities == priorities:
            raise ConnectionError("the broker closed the connection, or has another number of partitions")

    def _let_go(self, error: PartitionBlockedError) -> None:
        log.error(
            "partition paused: its next command is of a newer version; upgrade the workers first. Nothing is lost",
            partition=error.partition,
            error=str(error),
            next_try_in_seconds=BLOCKED_PAUSE_SECONDS,
        )
        self._deliveries.drop(error.partition)
        if let_go := self._holding.get(error.partition):
            self._blocked.add(error.partition)
            let_go.set()

    async def _apply(self, batch: Batch) -> None:
        """Apply a batch; the commands of owners whose rows other sessions hold are parked and tried again later."""
        while batch.deliveries:
            try:
                await self._apply_at_once(batch)
                break
            except OwnersLockedError as error:
                log.warning(
                    "owners are locked by another session; their commands wait, and those of the others are applied",
                    owners=sorted(error.owners),
                    error=str(error),
                )
                self._deliveries.park(batch, error.owners)

    async def _apply_at_once(self, batch: Batch) -> None:
        """Apply a batch, then acknowledge it, then reply."""
        started = self._batch_since = asyncio.get_running_loop().time()
        self._oldest_in_hand = batch.oldest
        try:
            async with asyncio.timeout(BATCH_TIMEOUT_SECONDS):
                with processing(batch) as steps:
                    outcomes = await apply_with_retries(batch, self._applier, steps, self._stopping)
                    steps.decided(outcomes)
                for content in batch.unreadable:
                    await self._reply_sender.dead_letter(content)
                await self._acknowledge(batch)
                for reply_to, replies in batch.replies(outcomes).items():
                    await self._reply_sender.reply(reply_to, replies)
        finally:
            self._batch_since = self._oldest_in_hand = None
        redelivered = batch.redelivered
        unreadable, now = len(batch.unreadable), self._clock.now()
        count_applied(batch.commands, outcomes, now, redelivered=redelivered, unreadable=unreadable)
        log.info(
            "batch settled",
            commands=len(outcomes),
            messages=len(batch.deliveries),
            redelivered=redelivered,
            milliseconds=round((asyncio.get_running_loop().time() - started) * 1000, 1),
        )

    async def _acknowledge(self, batch: Batch) -> None:
        for message, multiple in self._deliveries.decided(batch):
            try:
                with broker_call():  # without waiting for the socket's buffer: the reply comes next
                    await message.channel.basic_ack(message.delivery_tag or 0, multiple, wait=False)
            except BROKER_ERRORS as error:
                log.info("acknowledgement dropped; what comes again has no second effect", error=describe(error))


def prefetch_count(settings: WorkerSettings, partitions: int) -> int:
    """Return each partition's prefetch count: the setting, or less if so many messages would not fit into memory."""
    return max(1, min(settings.prefetch_messages, HELD_BYTES // (partitions * LARGEST_MESSAGE_BYTES)))
