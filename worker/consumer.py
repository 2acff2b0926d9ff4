"""Consumes the partitions: takes deliveries, applies them, acknowledges them, and replies.

Nothing is acknowledged before its commit.
"""

import asyncio
from datetime import datetime

import structlog
from aio_pika.abc import AbstractConnection

from shared.broker import (
    BROKER_ERRORS,
    PartitionsDifferError,
    broker_call,
    choose_backoff,
    keep_running,
    open_connection,
    user_of,
)
from shared.clock import Clock
from shared.connections import CONNECTION_ERRORS, Connections
from shared.database import check_schema
from shared.metrics import BROKER_CONNECTED
from shared.partitions import claim_partitions, wait_until_changed
from shared.tasks import end_tasks, start_in_background
from shared.topology import Topology, wait_until_lost
from worker.apply import ApplyOptions
from worker.deliveries import Batch, Deliveries, PartitionBlockedError
from worker.failures import Applier, RepeatedBugError, describe
from worker.hint_sender import HintSender
from worker.metrics import OLDEST, PARTITIONS, PAUSED, count_applied
from worker.partition_assignment import PartitionAssignment
from worker.reply_sender import ReplySender
from worker.retry import HandBackError, OwnersLockedError, apply_with_retries, pause
from worker.settings import WorkerSettings
from worker.subscriptions import Subscriptions
from worker.traces import trace_batch

BATCH_TIMEOUT_SECONDS = 120.0
"""A batch that takes longer is stuck, for whatever reason; its messages go back to the broker."""
REPEATED_BUG_PAUSE_SECONDS = 5.0
"""How long commands wait before they are tried again, if the reason that they fail may be the worker's own bug."""

log = structlog.get_logger()


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
        self._subscriptions = Subscriptions(settings, self._assignment, self._deliveries)
        self.are_partitions_different = False
        """Whether it consumes nothing, because INKWELL_PARTITIONS is not the broker's number."""
        self._stopping = asyncio.Event()
        self._batch_started: float | None = None
        self._oldest_in_batch: datetime | None = None

    @property
    def partitions(self) -> set[int]:
        """The partitions for which the broker has this worker as a consumer."""
        return self._subscriptions.partitions

    @property
    def refused(self) -> set[int]:
        """The partitions that it does not consume, because their queues have other arguments than they should."""
        return self._subscriptions.refused

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
        PARTITIONS.set(len(self.partitions))
        PAUSED.labels("newer_version").set(self._subscriptions.has_blocked)
        published = [each for each in (self._deliveries.oldest, self._oldest_in_batch) if each]
        OLDEST.set((self._clock.now() - min(published)).total_seconds() if published else 0)
        self._clock.report()

    def stop(self) -> None:
        """Take no new batch; `run` returns when the current one is committed and acknowledged."""
        self._stopping.set()
        self._deliveries.end()

    async def run(self) -> None:
        """Consume until `stop`; raises SchemaBehindError if the database lacks migrations."""
        background = start_in_background(
            replies=self._reply_sender.run(), hints=self._hint_sender.run(), slot=self._assignment.run()
        )
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
            except CONNECTION_ERRORS as error:
                log.warning(
                    "Postgres is unavailable; commands wait in their queues and Inkwell tries again by itself",
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
            subscriptions = self._subscriptions.start(connection, self.topology, deliveries)
            # Without a channel to probe: each subscription probes its own.
            lost = asyncio.create_task(wait_until_lost(connection, self.topology.commands_exchange))
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

    async def _consume(self, deliveries: Deliveries) -> None:
        while True:
            try:
                if parked := deliveries.probe_parked():
                    await self._apply(deliveries.unpark(await self._applier.find_locked(parked)))
                batch = await deliveries.take(self._settings.batch_commands)
                if batch is None:
                    break
                await self._apply(batch)
                self._subscriptions.give_back(batch)
            except PartitionBlockedError as error:
                self._subscriptions.pause(error)
            except HandBackError:  # closing the channels gives the messages back
                return
        if not self._stopping.is_set():
            raise ConnectionError("the broker closed the connection, or has another number of partitions")

    async def _apply(self, batch: Batch) -> None:
        """Apply a batch; parks commands that must wait: their owners' rows are locked, or they fail as others do."""
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
            except RepeatedBugError as error:
                log.error(
                    "a command failed in the same way as the one before: its owner's commands wait, and are tried "
                    "again until another command shows that Inkwell works; if none is applied, remove the cause",
                    owner=error.owner,
                    error=str(error),
                )
                PAUSED.labels("repeated_bug").set(1)
                self._deliveries.park(batch, {error.owner}, REPEATED_BUG_PAUSE_SECONDS)

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
                    await self._reply_sender.send_unreadable(content)
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
                with broker_call():  # `wait=False`: the replies are next, and must not wait until the socket takes this
                    await message.channel.basic_ack(message.delivery_tag or 0, multiple, wait=False)
            except BROKER_ERRORS as error:
                log.info("acknowledgement dropped; redelivered commands have no second effect", error=describe(error))
