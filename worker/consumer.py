"""Consumes the partitions: takes deliveries, applies them, acknowledges them, and replies.

Nothing is acknowledged before its commit. While a worker has unacknowledged messages, it neither cancels a consumer
nor requeues a message, since the broker would give later messages to another worker first. It closes the channel.
"""

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from time import monotonic

import asyncpg
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection

from shared.broker import (
    BROKER_ERRORS,
    CLOSE_TIMEOUT_SECONDS,
    SETUP_TIMEOUT_SECONDS,
    PartitionsDifferError,
    broker_call,
    choose_backoff,
    keep_running,
    open_connection,
    user_of,
)
from shared.clock import Clock
from shared.connections import Connections
from shared.contracts import LARGEST_MESSAGE_BYTES
from shared.database import check_schema
from shared.metrics import BROKER_CONNECTED
from shared.partitions import claim_partitions, wait_until_changed
from shared.tasks import end_tasks, is_cancelled
from shared.topology import PROBE_TIMEOUT_SECONDS, Topology, wait_until_lost
from worker.apply import ApplyOptions
from worker.deliveries import Batch, Deliveries, PartitionBlockedError
from worker.failures import Applier, RepeatedBugError, describe
from worker.hint_sender import HintSender
from worker.metrics import OLDEST, PARTITIONS, PAUSED, count_applied
from worker.partition_assignment import PartitionAssignment
from worker.queue_check import wait_for_correct_queue
from worker.reply_sender import ReplySender
from worker.retry import HandBackError, OwnersLockedError, apply_with_retries, pause
from worker.settings import WorkerSettings
from worker.traces import trace_batch

BATCH_TIMEOUT_SECONDS = 120.0
"""A batch that takes longer is stuck, for whatever reason; its messages go back to the broker."""
BLOCKED_PAUSE_SECONDS = 30.0
HELD_BYTES = 512 * 1024 * 1024
"""Limit on the size of unacknowledged messages, if each has the broker's maximum."""
WATCH_INTERVAL_SECONDS = 5.0
FORGOTTEN_CHECKS = 5
"""The number of checks in a row that found no consumer, after which the worker subscribes again.

With `net_ticktime = 15`, a queue whose leader hangs has a new leader by then. Before that, the broker might activate,
and keep, a consumer on the node that hangs.
"""

KEPT_SECONDS = 5.0
"""How long a worker keeps a partition that belongs to another: that one may not consume, and nobody else want it."""
CONSUMER_TAG = f"{socket.gethostname()}:{os.getpid()}"
"""Shown in the broker's list of consumers."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Subscription:
    """A partition's current consumer."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    is_given_up: bool = False
    """Whether this worker ended it."""
    _started: float = field(default_factory=monotonic)

    @property
    def has_lasted(self) -> bool:
        """Whether a partition of another worker may be given back now."""
        return monotonic() - self._started >= KEPT_SECONDS


class Consumer:
    """Consumes until stopped; recovers by itself when the broker or Postgres was unavailable."""

    def __init__(self, settings: WorkerSettings, connections: Connections) -> None:
        self._settings = settings
        self.topology = Topology.of(settings)
        """The queues that this worker consumes; it has the broker's number of partitions once connected."""
        self._reply_sender = ReplySender(settings.broker_url, self.topology, connections.primary)
        self._hint_sender = HintSender(settings.broker_url, self.topology)
        self._applier = Applier(connections, ApplyOptions.of(settings, self._hint_sender.announce))
        self._user = user_of(settings.broker_url)
        self._deliveries = Deliveries(self._user)
        self._clock = Clock()
        self._assignment = PartitionAssignment(settings, self._clock)
        self._subscriptions: dict[int, Subscription] = {}
        """By partition."""
        self._blocked: set[int] = set()
        """The partitions whose next command needs a newer worker."""
        self.refused: set[int] = set()
        """The partitions that it does not consume, because their queues have other arguments than they should."""
        self.are_partitions_different = False
        """Whether it consumes nothing, because INKWELL_PARTITIONS is not the broker's number."""
        self._stopping = asyncio.Event()
        self._batch_started: float | None = None
        self._oldest_in_batch: datetime | None = None

    @property
    def partitions(self) -> set[int]:
        """The partitions for which the broker has this worker as a consumer."""
        return set(self._subscriptions)

    @property
    def slot(self) -> int | None:
        """This worker's number among the workers, or None before it has one."""
        return self._assignment.slot

    @property
    def is_stuck(self) -> bool:
        """Whether the current batch has taken longer than its timeout should allow."""
        now = asyncio.get_running_loop().time()
        return self._batch_started is not None and now - self._batch_started > 2 * BATCH_TIMEOUT_SECONDS

    def update_metrics(self) -> None:
        """Set the gauges that describe the current state."""
        PARTITIONS.set(len(self._subscriptions))
        PAUSED.labels("newer_version").set(bool(self._blocked))
        published = [each for each in (self._deliveries.oldest, self._oldest_in_batch) if each]
        OLDEST.set((self._clock.now() - min(published)).total_seconds() if published else 0)
        self._clock.report()

    def stop(self) -> None:
        """Take no new batch; `run` returns when the current one is committed and acknowledged."""
        self._stopping.set()
        self._deliveries.end()

    async def run(self) -> None:
        """Consume until `stop`; raises SchemaBehindError if the database lacks migrations."""
        background = [
            asyncio.create_task(each.run()) for each in (self._reply_sender, self._hint_sender, self._assignment)
        ]
        try:
            while not self._stopping.is_set():
                await self._wait_for_database()
                await self._assignment.wait_for_slot()
                await keep_running(self._session, "inkwell-worker consuming")
        finally:
            await end_tasks(background)

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
        if self._stopping.is_set():  # stopped while waiting to reconnect
            return
        async with open_connection(self._settings.broker_url, "inkwell-worker consuming") as connection:
            await self._adopt_partitions(connection)
            deliveries = self._deliveries = Deliveries(self._user)
            self._applier.clear_cache()  # others may have consumed the partitions since the last session
            if self._stopping.is_set():  # stopped while connecting
                return
            subscriptions = [
                asyncio.create_task(
                    keep_running(partial(self._keep_subscription, connection, partition), f"partition {partition}")
                )
                for partition in range(self.topology.partitions)
            ]
            lost = asyncio.create_task(wait_until_lost(connection, self.topology))
            changed = asyncio.create_task(wait_until_changed(connection, self.topology))
            for watcher in (lost, changed):
                watcher.add_done_callback(lambda _: deliveries.end())
            BROKER_CONNECTED.set(1)
            try:
                await self._consume(deliveries)
            finally:
                BROKER_CONNECTED.set(0)
                await end_tasks([lost, changed, *subscriptions])

    async def _adopt_partitions(self, connection: AbstractConnection) -> None:
        """Adopt the broker's number of partitions; raises PartitionsDifferError if the setting names another."""
        try:
            self.topology = await claim_partitions(connection, self._settings)
        except PartitionsDifferError:
            self.are_partitions_different = True
            raise
        self.are_partitions_different = False
        self._assignment.partitions = self.topology.partitions

    async def _keep_subscription(self, connection: AbstractConnection, partition: int) -> None:
        """Subscribe to a partition, and again after giving it up; raises ConnectionError when the broker ends it."""
        while not is_cancelled():
            await self._hold_subscription(connection, partition)

    async def _hold_subscription(self, connection: AbstractConnection, partition: int) -> None:
        """Subscribe to a partition; returns after giving it up, raises ConnectionError when the broker has ended it."""
        if partition in self._blocked:
            await asyncio.sleep(BLOCKED_PAUSE_SECONDS)
            self._blocked.discard(partition)
        subscription = Subscription()
        try:
            await wait_for_correct_queue(connection, self.topology, partition, self.refused)
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                channel = await connection.channel(publisher_confirms=False)
                await self._subscribe(channel, partition, subscription)
        except TimeoutError:  # this node may be cut off from the others: reconnect, perhaps to another
            self._deliveries.end()
            raise
        self._subscriptions[partition] = subscription
        log.info("consuming", partition=partition)
        try:
            await self._watch(channel, partition, subscription)
        except TimeoutError:  # the broker has vanished, so the whole connection is dead
            self._deliveries.end()
            raise
        finally:
            del self._subscriptions[partition]
            self._deliveries.drop(partition)
            with suppress(*BROKER_ERRORS):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await channel.close()
        if not subscription.is_given_up:
            raise ConnectionError("the broker ended the subscription")

    async def _subscribe(self, channel: AbstractChannel, partition: int, subscription: Subscription) -> None:
        await channel.set_qos(prefetch_count=prefetch_count(self._settings, self.topology.partitions))
        channel.close_callbacks.add(lambda *_: subscription.ended.set())
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: subscription.ended.set())
        queue = await channel.get_queue(self.topology.command_queue(partition), ensure=False)
        await queue.consume(self._deliveries.new_receiver(partition), consumer_tag=CONSUMER_TAG)

    async def _watch(self, channel: AbstractChannel, partition: int, subscription: Subscription) -> None:
        """Return when the subscription has ended, even if the broker does not report it."""
        checks_without_consumer = 0
        while not subscription.ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(subscription.ended.wait(), WATCH_INTERVAL_SECONDS)
                return
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                queue = await channel.declare_queue(self.topology.command_queue(partition), passive=True)
            # A node that cannot reach the queue's leader reports no consumers, although the subscription exists.
            has_consumer = bool(queue.declaration_result.consumer_count)
            checks_without_consumer = 0 if has_consumer else checks_without_consumer + 1
            if checks_without_consumer == FORGOTTEN_CHECKS:
                log.warning("the broker has forgotten this consumer; subscribing again", partition=partition)
                return

    async def _consume(self, deliveries: Deliveries) -> None:
        while True:
            try:
                if parked := deliveries.probe_parked():
                    await self._apply(deliveries.unpark(await self._applier.find_locked(parked)))
                batch = await deliveries.take(self._settings.batch_commands)
                if batch is None:
                    break
                await self._apply(batch)
                self._give_back(batch)
            except PartitionBlockedError as error:
                self._pause_partition(error)
            except RepeatedBugError as error:
                log.error(
                    "paused: several commands fail in the same way, and no more of them are failed; "
                    "remove the cause, and the worker continues by itself",
                    error=str(error),
                )
                PAUSED.labels("repeated_bug").set(1)
                await pause(self._stopping, BLOCKED_PAUSE_SECONDS / 6)
                return
            except HandBackError:  # closing the channels gives the messages back
                return
        if not self._stopping.is_set():
            raise ConnectionError("the broker closed the connection, or has another number of partitions")

    def _pause_partition(self, error: PartitionBlockedError) -> None:
        log.error(
            "partition paused: its next command is of a newer version; upgrade the workers first. Nothing is lost",
            partition=error.partition,
            error=str(error),
            next_try_in_seconds=BLOCKED_PAUSE_SECONDS,
        )
        if error.partition in self._subscriptions:
            self._blocked.add(error.partition)
        self._give_up(error.partition)

    def _give_back(self, batch: Batch) -> None:
        """Give back the partitions of an applied batch that belong to other workers; the next in line gets them.

        The broker does not report which consumer is active; a worker infers it from what it receives. It gives nothing
        back before it has applied a message that was never returned: then the broker has delivered all those that were,
        and keeps the order when they are returned again.
        """
        fresh = {each.partition for each in batch.deliveries if not each.message.redelivered}
        for partition in fresh - self._deliveries.held_partitions:
            subscription = self._subscriptions.get(partition)
            if subscription and subscription.has_lasted and self._assignment.belongs_to_another(partition):
                log.info("partition given back: it belongs to another worker", partition=partition)
                self._give_up(partition)

    def _give_up(self, partition: int) -> None:
        """Drop the partition's messages and close its channel, which returns them; then subscribe again."""
        self._deliveries.drop(partition)
        if subscription := self._subscriptions.get(partition):
            subscription.is_given_up = True
            subscription.ended.set()

    async def _apply(self, batch: Batch) -> None:
        """Apply a batch; parks the commands of owners whose rows other sessions have locked."""
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
        started = self._batch_started = asyncio.get_running_loop().time()
        self._oldest_in_batch = batch.oldest
        try:
            async with asyncio.timeout(BATCH_TIMEOUT_SECONDS):
                with trace_batch(batch) as trace:
                    outcomes = await apply_with_retries(batch, self._applier, trace, self._stopping)
                    trace.record_outcomes(outcomes)
                for content in batch.unreadable:
                    await self._reply_sender.dead_letter(content)
                await self._acknowledge(batch)
                for reply_to, replies in batch.replies(outcomes).items():
                    await self._reply_sender.reply(reply_to, replies)
        finally:
            self._batch_started = self._oldest_in_batch = None
        count_applied(
            batch.commands,
            outcomes,
            self._clock.now(),
            redelivered=batch.redelivered,
            unreadable=len(batch.unreadable),
        )
        log.info(
            "batch applied",
            commands=len(outcomes),
            messages=len(batch.deliveries),
            redelivered=batch.redelivered,
            milliseconds=round((asyncio.get_running_loop().time() - started) * 1000, 1),
        )

    async def _acknowledge(self, batch: Batch) -> None:
        for message, multiple in self._deliveries.acknowledgements(batch):
            try:
                with broker_call():  # the reply is written next, so neither waits for the socket's buffer
                    await message.channel.basic_ack(message.delivery_tag or 0, multiple, wait=False)
            except BROKER_ERRORS as error:
                log.info("acknowledgement dropped; redelivered commands have no second effect", error=describe(error))


def prefetch_count(settings: WorkerSettings, partitions: int) -> int:
    """Return the prefetch count of a partition: the setting, or less if all partitions would exceed HELD_BYTES."""
    return max(1, min(settings.prefetch_messages, HELD_BYTES // (partitions * LARGEST_MESSAGE_BYTES)))
