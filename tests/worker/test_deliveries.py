"""Which messages are acknowledged after a batch."""

from aio_pika import Message
from aio_pika.abc import AbstractChannel

from shared.contracts import encode_batch, encode_command
from shared.tables import IMPLICIT_OWNER
from tests.support.commands import create
from tests.support.harness import eventually
from worker.deliveries import Deliveries


async def test_messages_that_were_parked_are_acknowledged_up_to_the_last(
    channel: AbstractChannel,
) -> None:
    deliveries = Deliveries("nobody")
    queue = await channel.declare_queue(exclusive=True)
    await queue.consume(deliveries.new_receiver(0))
    for events in ([encode_command(create("first"))], [], [encode_command(create("last"))]):  # the second is a marker
        await channel.default_exchange.publish(Message(encode_batch(events)), queue.name)
    await eventually(lambda: has_arrived(deliveries, 3))
    batch = await deliveries.take(500)
    assert batch

    deliveries.park(batch, {IMPLICIT_OWNER})
    before = deliveries.acknowledgements(batch)
    after = deliveries.acknowledgements(deliveries.unpark(set()))

    assert before == []
    assert [(message.delivery_tag, multiple) for message, multiple in after] == [(3, True)]


async def has_arrived(deliveries: Deliveries, number: int) -> bool:
    return len(deliveries._waiting) == number
