"""Unacknowledged deliveries, and the batches that are made of them."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from aio_pika.abc import AbstractIncomingMessage

from shared.contracts import (
    BadCommand,
    Command,
    NewerVersionError,
    Outcome,
    Received,
    Reply,
    Unreadable,
    count_writes,
    decode_batch,
    encode_batch,
    find_envelope,
    strip_replay,
)
from shared.frames import UNREADABLE_PROPERTIES
from worker.metrics import DELIVERIES

PARKED_PAUSE_SECONDS = 0.5
"""How often to check whether the owners of parked commands are still locked."""
BATCH_BYTES = 4 * 1024 * 1024
"""A batch of this size takes no more messages: decoded, they need up to sixty times as much memory."""
ISOLATED_AFTER_DELIVERIES = 3
"""A message that was returned more often may be crashing its workers; it becomes a batch of its own, run one by one."""


Receiver = Callable[[AbstractIncomingMessage], Awaitable[None]]


class PartitionBlockedError(Exception):
    """The next message of a partition has a command that needs a newer worker."""

    def __init__(self, partition: int, error: NewerVersionError) -> None:
        super().__init__(str(error))
        self.partition = partition


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message and its partition, on whose channel it has to be acknowledged."""

    partition: int
    message: AbstractIncomingMessage

    @property
    def times_returned(self) -> int:
        """How often the message was returned to the broker; RabbitMQ 4 counts disconnects in either header.

        A publisher may forge headers, but not the `redelivered` flag.
        """
        if not self.message.redelivered:
            return 0
        counts = [self.message.headers.get(name) for name in ("x-delivery-count", "x-acquired-count")]
        return max((count for count in counts if isinstance(count, int)), default=0)

    def decode(self, replayer: str, *, fail_newer: bool = False) -> Sequence[Received]:
        """Return the commands; strips replay marks unless the broker has verified `replayer` as the publisher."""
        if self.message.type == UNREADABLE_PROPERTIES:
            return [Unreadable(self.message.body)]
        received = decode_batch(self.message.body, fail_newer=fail_newer)
        return received if self.message.user_id == replayer else list(map(strip_replay, received))


def find_oldest(deliveries: Iterable[Delivery]) -> datetime | None:
    """Return when the oldest of the messages was published, or None if none has a timestamp."""
    return min((each.message.timestamp for each in deliveries if each.message.timestamp), default=None)


def _owner_of(each: tuple[Delivery, Received]) -> int | None:
    _, received = each
    envelope = None if isinstance(received, Unreadable) else find_envelope(received)
    return envelope.owner if envelope else None


@dataclass(slots=True)
class Batch:
    """Deliveries in order, and the commands in them."""

    deliveries: list[Delivery] = field(default_factory=list)
    received: list[tuple[Delivery, Received]] = field(default_factory=list)
    """What was decoded, each with its delivery."""
    markers: list[Delivery] = field(default_factory=list)
    """Empty messages: the reply to one confirms that everything before it in its partition is committed."""
    writes: int = 0
    """The number of writes in the commands."""
    size_bytes: int = 0
    isolated: bool = False
    """Whether to run the commands one by one, each after a committed mark."""

    def add(self, delivery: Delivery, received: Sequence[Received]) -> None:
        """Add a delivery with its decoded commands."""
        self.received += [(delivery, each) for each in received]
        self.writes += sum(map(count_writes, received))
        self.size_bytes += len(delivery.message.body)
        self.deliveries.append(delivery)
        if not received:
            self.markers.append(delivery)

    @property
    def decodable(self) -> list[tuple[Delivery, Command | BadCommand]]:
        """The commands that get an outcome, each with its delivery."""
        return [(delivery, each) for delivery, each in self.received if not isinstance(each, Unreadable)]

    @property
    def commands(self) -> list[Command | BadCommand]:
        """The commands that get an outcome."""
        return [each for _, each in self.received if not isinstance(each, Unreadable)]

    @property
    def unreadable(self) -> list[bytes]:
        """The unreadable content of each message that has any, as a JSON batch if it is more than one event."""
        contents: dict[int, list[bytes]] = defaultdict(list)
        for delivery, received in self.received:
            if isinstance(received, Unreadable):
                contents[id(delivery)].append(received.content)
        return [each[0] if len(each) == 1 else encode_batch(each) for each in contents.values()]

    @property
    def redelivered(self) -> int:
        """The number of redelivered messages."""
        return sum(bool(delivery.message.redelivered) for delivery in self.deliveries)

    @property
    def oldest(self) -> datetime | None:
        """When the oldest message was published."""
        return find_oldest(self.deliveries)

    def replies(self, outcomes: list[Outcome]) -> dict[str, list[Reply]]:
        """Return the replies by address, from the outcomes of `commands`; the reply to a marker is empty."""
        replies = defaultdict[str, list[Reply]](list)
        for marker in self.markers:
            replies[marker.message.reply_to or ""] = []
        replies.pop("", None)
        for (delivery, command), outcome in zip(self.decodable, outcomes, strict=True):
            envelope = find_envelope(command)
            reply_to = delivery.message.reply_to
            if reply_to and envelope:
                replies[reply_to].append(Reply(attempt_id=envelope.attempt_id, outcome=outcome))
        return replies


class Deliveries:
    """The unacknowledged deliveries of one connection, in order of arrival."""

    def __init__(self, replayer: str) -> None:
        self._replayer = replayer
        """The broker user whose replays are accepted."""
        self._waiting: deque[Delivery] = deque()
        self._parked: list[tuple[Delivery, Received]] = []
        """Commands that wait, in order: their owners' rows are locked, or they failed in the same way as others."""
        self._parked_markers: list[Delivery] = []
        """Markers of partitions that have parked commands."""
        self._locked: set[int | None] = set()
        """The owners of the parked commands."""
        self._parked_until = 0.0
        self._changed = asyncio.Event()
        self._ended = False
        self._receivers: dict[int, Receiver] = {}

    def new_receiver(self, partition: int) -> Receiver:
        """Return the callback for a new consumer of a partition; `drop` disables it."""

        async def receive(message: AbstractIncomingMessage) -> None:
            # No await before the message is stored, or a later one could overtake it.
            if self._receivers.get(partition) is receive:
                self._waiting.append(Delivery(partition, message))
                DELIVERIES.labels(partition).inc()
                self._changed.set()

        self._receivers[partition] = receive
        return receive

    @property
    def oldest(self) -> datetime | None:
        """When the oldest waiting or parked message was published."""
        return find_oldest([*self._waiting, *(delivery for delivery, _ in self._parked)])

    def drop(self, partition: int) -> None:
        """Discard a partition's messages, and those that still arrive; the broker delivers them again.

        Their owners stay in `_locked`: if their commands come again, they are parked once more until the next probe.
        """
        self._receivers.pop(partition, None)
        self._waiting = deque(delivery for delivery in self._waiting if delivery.partition != partition)
        self._parked = [each for each in self._parked if each[0].partition != partition]
        self._parked_markers = [each for each in self._parked_markers if each.partition != partition]

    def end(self) -> None:
        """End the deliveries; `take` returns None from now on."""
        self._ended = True
        self._changed.set()

    async def take(self, writes: int) -> Batch | None:
        """Wait for a delivery, and take those that have arrived, up to the one that reaches a limit of writes or bytes.

        Returns None when the deliveries have ended, and an empty batch when it is time to retry parked commands.
        Raises PartitionBlockedError if the next delivery needs a newer worker.
        """
        while not self._waiting and not self._ended:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), PARKED_PAUSE_SECONDS if self._parked else None)
            except TimeoutError:
                return Batch()
        batch = Batch()
        while self._waiting and not self._ended and not batch.isolated:
            if batch.writes >= writes or batch.size_bytes >= BATCH_BYTES or not self._take_next(batch):
                break
        self.park(batch, self._locked)  # later commands of an owner wait behind the earlier ones
        return None if self._ended else batch

    def park(self, batch: Batch, owners: Collection[int | None], seconds: float = 0.0) -> None:
        """Move the commands of these owners from the batch to the parked ones, to wait for at least so many seconds."""
        if owners:
            self._parked_until = max(self._parked_until, asyncio.get_running_loop().time() + seconds)
            self._locked.update(owners)
            self._parked += [each for each in batch.received if _owner_of(each) in owners]
            batch.received = [each for each in batch.received if _owner_of(each) not in owners]
            self._parked_markers += [each for each in batch.markers if each.partition in self.held_partitions]
            batch.markers = [each for each in batch.markers if each not in self._parked_markers]

    @property
    def held_partitions(self) -> set[int]:
        """The partitions that have parked commands."""
        return {delivery.partition for delivery, _ in self._parked}

    def probe_parked(self) -> list[Command | BadCommand]:
        """Return the first parked command of each owner if it is time to check for locks, otherwise []."""
        now = asyncio.get_running_loop().time()
        if not self._parked or now < self._parked_until:
            return []
        self._parked_until = now + PARKED_PAUSE_SECONDS
        # In reverse, so that an owner's first command replaces the later ones.
        first = {_owner_of(each): each for each in reversed(self._parked)}
        return Batch(received=list(first.values())).commands

    def unpark(self, locked: set[int]) -> Batch:
        """Remove the parked commands of all owners except these; returns them as a batch."""
        batch = Batch(received=[each for each in self._parked if _owner_of(each) not in locked])
        self._parked = [each for each in self._parked if _owner_of(each) in locked]
        batch.markers = [each for each in self._parked_markers if each.partition not in self.held_partitions]
        self._parked_markers = [each for each in self._parked_markers if each not in batch.markers]
        batch.deliveries = list(dict.fromkeys([*(delivery for delivery, _ in batch.received), *batch.markers]))
        self._locked &= locked
        return batch

    def acknowledgements(self, batch: Batch) -> list[tuple[AbstractIncomingMessage, bool]]:
        """Return the messages to acknowledge after the batch, each with AMQP's `multiple` flag for earlier ones.

        A message is acknowledged once all of its commands have outcomes. Partitions dropped in the meantime are left
        out: `multiple` would also acknowledge the parked messages that were dropped with them.
        """
        incomplete = {*(delivery for delivery, _ in self._parked), *self._parked_markers}
        held = self.held_partitions
        kept = [each for each in batch.deliveries if each.partition in self._receivers]
        # `multiple` covers smaller tags only, and deliveries that were parked are not in the order of their tags.
        kept.sort(key=lambda each: each.message.delivery_tag or 0)
        last = {each.partition: (each.message, True) for each in kept if each.partition not in held}
        singly = [each.message for each in kept if each.partition in held and each not in incomplete]
        return [*((message, False) for message in singly), *last.values()]

    def _take_next(self, batch: Batch) -> bool:
        """Move the next delivery into the batch; return False if it must start a batch of its own."""
        delivery = self._waiting[0]
        isolated = delivery.times_returned > ISOLATED_AFTER_DELIVERIES
        if isolated and batch.deliveries:
            return False
        try:
            received = delivery.decode(self._replayer)
        except NewerVersionError as error:
            if batch.deliveries:
                return False
            raise PartitionBlockedError(delivery.partition, error) from error
        batch.add(delivery, received)
        batch.isolated = isolated
        self._waiting.popleft()
        return True
