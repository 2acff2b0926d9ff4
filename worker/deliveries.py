"""What the broker has delivered and nobody has settled yet, and the batches that are made of it."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
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
    envelope_of,
    strip_replay,
)
from shared.frames import UNREADABLE_PROPERTIES
from worker.metrics import DELIVERIES

BATCH_BYTES = 4 * 1024 * 1024
"""A batch takes no more messages from this size on: decoded, they take up to sixty times as much memory."""
CAREFUL_AFTER_DELIVERIES = 3
"""A message that came back more often may be killing its workers; it is handled alone and command by command."""


Receiver = Callable[[AbstractIncomingMessage], Awaitable[None]]


class PartitionBlockedError(Exception):
    """The next message of a partition needs a newer worker."""

    def __init__(self, partition: int, error: NewerVersionError) -> None:
        super().__init__(str(error))
        self.partition = partition


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message, and the partition whose channel it must be acknowledged on."""

    partition: int
    message: AbstractIncomingMessage

    @property
    def times_returned(self) -> int:
        """How often the broker has taken the message back; 4.x counts disconnects under either name.

        A publisher may have forged the counts, which are headers, but not the broker's `redelivered` flag.
        """
        if not self.message.redelivered:
            return 0
        counts = [self.message.headers.get(name) for name in ("x-delivery-count", "x-acquired-count")]
        return max((count for count in counts if isinstance(count, int)), default=0)

    def decode(self, replayer: str, *, fail_newer: bool = False) -> Sequence[Received]:
        """The commands in it; replay marks count only if the broker verified that `replayer` published the message."""
        if self.message.type == UNREADABLE_PROPERTIES:
            return [Unreadable(self.message.body)]
        received = decode_batch(self.message.body, fail_newer=fail_newer)
        return received if self.message.user_id == replayer else list(map(strip_replay, received))


def oldest(deliveries: Iterable[Delivery]) -> datetime | None:
    """When the oldest of the messages was published, if any of them says so."""
    return min((each.message.timestamp for each in deliveries if each.message.timestamp), default=None)


@dataclass(slots=True)
class Batch:
    """Some deliveries in their order, and the commands in them."""

    deliveries: list[Delivery] = field(default_factory=list)
    received: list[tuple[Delivery, Received]] = field(default_factory=list)
    """Each with the delivery that it came in."""
    writes: int = 0
    """How many writes there are in it."""
    size_bytes: int = 0
    careful: bool = False
    """Whether to run its commands one by one, each after a mark."""

    def add(self, delivery: Delivery, received: Sequence[Received]) -> None:
        """Adds a delivery with its decoded commands."""
        self.received += [(delivery, each) for each in received]
        self.writes += sum(map(count_writes, received))
        self.size_bytes += len(delivery.message.body)
        self.deliveries.append(delivery)

    @property
    def commands(self) -> list[Command | BadCommand]:
        """What can be settled."""
        return [received for _, received in self.received if not isinstance(received, Unreadable)]

    @property
    def unreadable(self) -> list[bytes]:
        """What cannot: one content for each message, a JSON batch if several of its events are unreadable."""
        contents: dict[int, list[bytes]] = defaultdict(list)
        for delivery, received in self.received:
            if isinstance(received, Unreadable):
                contents[id(delivery)].append(received.content)
        return [each[0] if len(each) == 1 else encode_batch(each) for each in contents.values()]

    @property
    def redelivered(self) -> int:
        """How many of its messages came again."""
        return sum(bool(delivery.message.redelivered) for delivery in self.deliveries)

    @property
    def oldest(self) -> datetime | None:
        """When the oldest message was published."""
        return oldest(self.deliveries)

    def replies(self, outcomes: list[Outcome]) -> dict[str, list[Reply]]:
        """The replies for each gateway, from the outcomes of `commands`.

        An empty message gets an empty reply, which tells that everything before it is committed.
        """
        replies: dict[str, list[Reply]] = {
            each.message.reply_to: [] for each in self.deliveries if each.message.reply_to
        }
        settled = [(each, received) for each, received in self.received if not isinstance(received, Unreadable)]
        for (delivery, command), outcome in zip(settled, outcomes, strict=True):
            envelope, reply_to = envelope_of(command), delivery.message.reply_to
            if reply_to and envelope:
                replies[reply_to].append(Reply(attempt_id=envelope.attempt_id, outcome=outcome))
        return replies

    def last_of_each_partition(self) -> list[AbstractIncomingMessage]:
        """The messages whose acknowledgement acknowledges all the others."""
        return list({delivery.partition: delivery.message for delivery in self.deliveries}.values())


class Deliveries:
    """The deliveries of one connection, in the order in which they came, until the connection or the worker ends."""

    def __init__(self, replayer: str) -> None:
        self._replayer = replayer
        """The broker user whose replays are accepted."""
        self._waiting: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._receivers: dict[int, Receiver] = {}

    def receiver(self, partition: int) -> Receiver:
        """A callback for a new consumer of a partition, until `drop`."""

        async def receive(message: AbstractIncomingMessage) -> None:
            # Without an await before it is kept, or a later message could overtake.
            if self._receivers.get(partition) is receive:
                self._waiting.append(Delivery(partition, message))
                DELIVERIES.labels(partition).inc()
                self._changed.set()

        self._receivers[partition] = receive
        return receive

    @property
    def oldest(self) -> datetime | None:
        """When the oldest message that waits was published."""
        return oldest(self._waiting)

    def drop(self, partition: int) -> None:
        """Forgets what waits of a partition and what still comes: it belongs to the broker again."""
        self._receivers.pop(partition, None)
        self._waiting = deque(delivery for delivery in self._waiting if delivery.partition != partition)

    def end(self) -> None:
        """Nothing more is to be taken."""
        self._ended = True
        self._changed.set()

    async def take(self, commands: int) -> Batch | None:
        """Waits for a delivery and takes those that are there, up to the one that completes so many writes or bytes.

        None when the deliveries have ended. Raises PartitionBlockedError where the next one needs a newer worker.
        """
        while not self._waiting and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        batch = Batch()
        while self._waiting and not self._ended and not batch.careful:
            if batch.writes >= commands or batch.size_bytes >= BATCH_BYTES or not self._take_next(batch):
                break
        return None if self._ended else batch

    def _take_next(self, batch: Batch) -> bool:
        """Moves the next delivery into the batch, unless it must start a batch of its own."""
        delivery = self._waiting[0]
        careful = delivery.times_returned > CAREFUL_AFTER_DELIVERIES
        if careful and batch.deliveries:
            return False
        try:
            received = delivery.decode(self._replayer)
        except NewerVersionError as error:
            if batch.deliveries:
                return False
            raise PartitionBlockedError(delivery.partition, error) from error
        batch.add(delivery, received)
        batch.careful = careful
        self._waiting.popleft()
        return True
