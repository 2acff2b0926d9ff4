"""What RabbitMQ says of queues: which ones there are, and whether they were made as they should be.

The only way to learn a queue's arguments over AMQP is to declare it: the broker refuses other ones, and names the
first that differs.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiormq.abc
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp.common import FieldTable

MANDATORY = ("x-queue-type", "x-single-active-consumer")
"""Where these differ, two workers may have messages of one queue at once."""
_DIFFERENCE = re.compile(r"inequivalent arg '(?P<argument>x-[^']+)' .* but current is (none|.*?'(?P<value>[^']*)'.*)")


class WrongQueueError(Exception):
    """A queue that must not be consumed as it is; the message says why."""


async def declare_queue(channel: AbstractChannel, name: str, arguments: FieldTable) -> dict[str, str]:
    """Creates a queue where it is missing; the arguments with which one that is there was made otherwise.

    Raises WrongQueueError where one of these is mandatory.
    """
    found: dict[str, str] = {}
    arguments = dict(arguments)
    while told := await _refusal(channel, name, arguments):
        difference = _DIFFERENCE.search(told)
        argument = difference["argument"] if difference else ""
        if difference is None or argument in MANDATORY or argument in found:
            raise WrongQueueError(told.removeprefix("PRECONDITION_FAILED - "))
        found[argument] = difference["value"] or "none"
        if difference["value"] is None:
            del arguments[argument]
        else:
            arguments[argument] = _parsed(difference["value"])
    return found


async def _refusal(channel: AbstractChannel, name: str, arguments: FieldTable) -> str:
    """What the broker says against declaring a queue so; nothing once it is declared."""
    try:
        async with own_channel(channel) as asking:
            await asking.queue_declare(name, durable=True, arguments=arguments)
    except ChannelPreconditionFailed as error:
        return str(error)
    return ""


def _parsed(value: str) -> int | bool | str:
    """An argument's value, as the broker prints it."""
    if value in {"true", "false"}:
        return value == "true"
    return int(value) if re.fullmatch(r"-?[0-9]+", value) else value


async def exists(channel: AbstractChannel, *, queue: str = "", exchange: str = "") -> bool:
    """Whether the broker has them."""
    try:
        async with own_channel(channel) as asking:
            if exchange:
                await asking.exchange_declare(exchange, passive=True)
            if queue:
                await asking.queue_declare(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    return True


@asynccontextmanager
async def own_channel(channel: AbstractChannel) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    """Another channel of the same connection for the block, because the broker's no closes the one that asks."""
    asking = await (await channel.get_underlay_channel()).connection.channel()
    try:
        yield asking
    except (ChannelNotFoundEntity, ChannelPreconditionFailed):
        if is_cancelled():  # the library forgets it where the broker closes the channel at the same time
            raise asyncio.CancelledError from None
        raise
    await asking.close()


def is_cancelled() -> bool:
    """Whether somebody has asked the current task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
