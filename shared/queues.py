"""Checks that queues exist and have the expected arguments.

AMQP reveals a queue's arguments only in errors: the broker rejects a declaration with other arguments, and names the
first that differs.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

import aiormq.abc
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp.common import FieldTable

from shared.tasks import is_cancelled

MANDATORY = ("x-queue-type", "x-single-active-consumer")
"""If one of these differs, two workers may receive messages of the queue at the same time."""
_DIFFERENCE = re.compile(r"inequivalent arg '(?P<argument>x-[^']+)' .* but current is (none|.*?'(?P<value>[^']*)'.*)")
_LOCKS: WeakKeyDictionary[aiormq.abc.AbstractConnection, asyncio.Lock] = WeakKeyDictionary()


class QueueMismatchError(Exception):
    """A queue that must not be consumed because of its arguments; the message names them."""


async def declare_queue(channel: AbstractChannel, name: str, arguments: FieldTable) -> dict[str, str]:
    """Declare a queue; returns the arguments of an existing one that differ from these.

    Raises QueueMismatchError if a mandatory one differs.
    """
    found: dict[str, str] = {}
    arguments = dict(arguments)
    while refusal := await _try_declaring(channel, name, arguments):
        difference = _DIFFERENCE.search(refusal)
        argument = difference["argument"] if difference else ""
        if difference is None or argument in MANDATORY or argument in found:
            raise QueueMismatchError(refusal.removeprefix("PRECONDITION_FAILED - "))
        found[argument] = difference["value"] or "none"
        if difference["value"] is None:
            del arguments[argument]
        else:
            arguments[argument] = _parse_argument(difference["value"])
    return found


async def _try_declaring(channel: AbstractChannel, name: str, arguments: FieldTable) -> str:
    """Declare the queue; returns the broker's reason for a rejection, or an empty string."""
    try:
        async with own_channel(channel) as asking:
            await asking.queue_declare(name, durable=True, arguments=arguments)
    except ChannelPreconditionFailed as error:
        return str(error)
    return ""


def _parse_argument(value: str) -> int | bool | str:
    """Parse an argument's value as the broker prints it."""
    if value in {"true", "false"}:
        return value == "true"
    return int(value) if re.fullmatch(r"-?[0-9]+", value) else value


async def exists(channel: AbstractChannel, *, queue: str = "", exchange: str = "") -> bool:
    """Whether the broker has the queue and the exchange."""
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
    """Open a separate channel for the block: the broker closes a channel when it rejects a declaration.

    Only one at a time: aiormq may reuse the number of a closed channel before it has confirmed the close, and then the
    broker closes the connection.
    """
    connection = (await channel.get_underlay_channel()).connection
    async with _LOCKS.setdefault(connection, asyncio.Lock()):
        asking = await connection.channel()
        try:
            yield asking
        except (ChannelNotFoundEntity, ChannelPreconditionFailed):
            if is_cancelled():  # aiormq swallows the cancellation if the broker closes the channel at the same time
                raise asyncio.CancelledError from None
            raise
        await asking.close()
