"""Subscribes to the partitions, each on a channel of its own, and gives back those that belong to other workers.

While a worker has unacknowledged messages, it neither cancels a consumer nor requeues a message, since the broker would
give later messages to another worker first. It closes the channel.
"""

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection

from shared.broker import BROKER_ERRORS, CLOSE_TIMEOUT_SECONDS, SETUP_TIMEOUT_SECONDS, keep_running
from shared.contracts import LARGEST_MESSAGE_BYTES
from shared.tasks import is_cancelled
from shared.topology import PROBE_TIMEOUT_SECONDS, Topology
from worker.deliveries import Batch, Deliveries, PartitionBlockedError
from worker.partition_assignment import PartitionAssignment
from worker.queue_check import wait_for_correct_queue
from worker.settings import WorkerSettings

BLOCKED_PAUSE_SECONDS = 30.0
"""How long a partition is paused whose next command needs a newer worker."""
HELD_BYTES = 512 * 1024 * 1024
"""Limit on the size of unacknowledged messages, if each has the broker's maximum."""
WATCH_INTERVAL_SECONDS = 5.0
FORGOTTEN_CHECKS = 5
"""The number of checks in a row that found no consumer, after which the worker subscribes again.

With `net_ticktime = 15`, a queue whose leader hangs has a new leader by then. Before that, the broker might activate,
and keep, a consumer on the node that hangs.
"""
KEPT_SECONDS = 5.0
"""How long a worker consumes a partition of another worker before it gives it back.

The other worker may be unable to consume: without this pause, the partition would only be passed around.
"""
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


class Subscriptions:
    """This worker's consumers at the broker; `start` replaces them for each connection."""

    def __init__(self, settings: WorkerSettings, assignment: PartitionAssignment, deliveries: Deliveries) -> None:
        self._settings = settings
        self._assignment = assignment
        self._topology = Topology.of(settings)
        self._deliveries = deliveries
        self._current: dict[int, Subscription] = {}
        """By partition."""
        self._blocked: set[int] = set()
        """The partitions whose next command needs a newer worker."""
        self.refused: set[int] = set()
        """The partitions that it does not consume, because their queues have other arguments than they should."""

    @property
    def partitions(self) -> set[int]:
        """The partitions for which the broker has this worker as a consumer."""
        return set(self._current)

    @property
    def has_blocked(self) -> bool:
        """Whether a partition is paused because its next command needs a newer worker."""
        return bool(self._blocked)

    def start(
        self, connection: AbstractConnection, topology: Topology, deliveries: Deliveries
    ) -> list[asyncio.Task[None]]:
        """Start to consume all partitions on a connection; returns the tasks, which run until cancelled."""
        self._topology = topology
        self._deliveries = deliveries
        return [
            asyncio.create_task(keep_running(partial(self._keep, connection, partition), f"partition {partition}"))
            for partition in range(topology.partitions)
        ]

    def pause(self, error: PartitionBlockedError) -> None:
        """Pause a partition whose next command needs a newer worker."""
        log.error(
            "partition paused: its next command is of a newer version; upgrade the workers first. Nothing is lost",
            partition=error.partition,
            error=str(error),
            next_try_in_seconds=BLOCKED_PAUSE_SECONDS,
        )
        if error.partition in self._current:
            self._blocked.add(error.partition)
        self._give_up(error.partition)

    def give_back(self, batch: Batch) -> None:
        """Give back the partitions of an applied batch that belong to other workers; the next in line gets them.

        The broker does not report which consumer is active; a worker infers it from what it receives. It gives nothing
        back before it has applied a message that was never returned: then the broker has delivered all those that were,
        and keeps the order when they are returned again.
        """
        fresh = {each.partition for each in batch.deliveries if not each.message.redelivered}
        for partition in fresh - self._deliveries.held_partitions:
            subscription = self._current.get(partition)
            if subscription and subscription.has_lasted and self._assignment.belongs_to_another(partition):
                log.info("partition given back: it belongs to another worker", partition=partition)
                self._give_up(partition)

    def _give_up(self, partition: int) -> None:
        """Drop the partition's messages and close its channel, which returns them; then subscribe again."""
        self._deliveries.drop(partition)
        if subscription := self._current.get(partition):
            subscription.is_given_up = True
            subscription.ended.set()

    async def _keep(self, connection: AbstractConnection, partition: int) -> None:
        """Subscribe to a partition, and again after giving it up; raises ConnectionError when the broker ends it."""
        while not is_cancelled():  # not `True`: before Python 3.12 `wait_for` in `_watch` may drop a cancellation
            await self._hold(connection, partition)

    async def _hold(self, connection: AbstractConnection, partition: int) -> None:
        """Subscribe to a partition; returns after giving it up, raises ConnectionError when the broker has ended it."""
        if partition in self._blocked:
            await asyncio.sleep(BLOCKED_PAUSE_SECONDS)
            self._blocked.discard(partition)
        subscription = Subscription()
        try:
            await wait_for_correct_queue(connection, self._topology, partition, self.refused)
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                channel = await connection.channel(publisher_confirms=False)
                await self._subscribe(channel, partition, subscription)
        except TimeoutError:  # this node may be cut off from the others: reconnect, perhaps to another
            self._deliveries.end()
            raise
        self._current[partition] = subscription
        log.info("consuming", partition=partition)
        try:
            await self._watch(channel, partition, subscription)
        except TimeoutError:  # the broker has vanished, so the whole connection is dead
            self._deliveries.end()
            raise
        finally:
            del self._current[partition]
            self._deliveries.drop(partition)
            with suppress(*BROKER_ERRORS):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await channel.close()
        if not subscription.is_given_up:
            raise ConnectionError("the broker ended the subscription")

    async def _subscribe(self, channel: AbstractChannel, partition: int, subscription: Subscription) -> None:
        await channel.set_qos(prefetch_count=prefetch_count(self._settings, self._topology.partitions))
        channel.close_callbacks.add(lambda *_: subscription.ended.set())
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: subscription.ended.set())
        queue = await channel.get_queue(self._topology.command_queue(partition), ensure=False)
        await queue.consume(self._deliveries.new_receiver(partition), consumer_tag=CONSUMER_TAG)

    async def _watch(self, channel: AbstractChannel, partition: int, subscription: Subscription) -> None:
        """Return when the subscription has ended, even if the broker does not report it."""
        checks_without_consumer = 0
        while not subscription.ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(subscription.ended.wait(), WATCH_INTERVAL_SECONDS)
                return
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                queue = await channel.declare_queue(self._topology.command_queue(partition), passive=True)
            # A node that cannot reach the queue's leader reports no consumers, although the subscription exists.
            has_consumer = bool(queue.declaration_result.consumer_count)
            checks_without_consumer = 0 if has_consumer else checks_without_consumer + 1
            if checks_without_consumer == FORGOTTEN_CHECKS:
                log.warning("the broker has forgotten this consumer; subscribing again", partition=partition)
                return


def prefetch_count(settings: WorkerSettings, partitions: int) -> int:
    """Return the prefetch count of a partition: the setting, or less if all partitions would exceed HELD_BYTES."""
    return max(1, min(settings.prefetch_messages, HELD_BYTES // (partitions * LARGEST_MESSAGE_BYTES)))
