"""Finds the number of partitions, which is part of the name of an exchange (docs/decisions/0031).

A gateway may only declare exchanges passively, which shows no more than whether a name exists.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelLockedResource

from shared.broker import (
    BROKER_ERRORS,
    SETUP_TIMEOUT_SECONDS,
    PartitionsDifferError,
    broker_call,
    is_blocked,
    open_connection,
)
from shared.metrics import PARTITIONS_DIFFER
from shared.name_numbers import LOCK_NUMBER, RANGE_SIZE
from shared.queues import exists
from shared.settings import MAX_PARTITIONS, ServiceSettings
from shared.topology import PROBE_TIMEOUT_SECONDS, RoutingState, Topology

FORMER_PARTITIONS = 8
"""The default before 1.0, and the number in the production overlay."""
FIRST_PARTITIONS = 1
"""The number that a worker declares if the broker has none and its own setting is unset."""
CHECK_SECONDS = 2.0
ABSENT_CHECK_SECONDS = 0.5

log = structlog.get_logger()


class PartitionsLockedError(ConnectionError):
    """The number of partitions is being changed, or first declared, by another process."""


async def find_partitions(channel: AbstractChannel, topology: Topology) -> Topology | None:
    """Return the topology with the broker's number of partitions; None if no worker of this version has declared one.

    Tries the topology's own number first.
    """
    for number in (topology.partitions or FIRST_PARTITIONS, FORMER_PARTITIONS):
        if found := await _find_routes(channel, replace(topology, partitions=number)):
            return found
    async for numbers in _iter_ranges(channel, topology):
        for number in numbers:
            if found := await _find_routes(channel, replace(topology, partitions=number)):
                return found
    return None


async def _iter_ranges(channel: AbstractChannel, topology: Topology) -> AsyncIterator[range]:
    """Yield each range that contains the broker's number or a former one."""
    for start in range(0, MAX_PARTITIONS + 1, RANGE_SIZE):
        if await exists(channel, exchange=replace(topology, partitions=start).range_exchange):
            yield range(start or 1, start + RANGE_SIZE)


async def _has_had_number(channel: AbstractChannel, topology: Topology) -> bool:
    """Whether a worker of this version has ever declared a number."""
    return bool([numbers async for numbers in _iter_ranges(channel, topology)])


async def _find_routes(channel: AbstractChannel, topology: Topology) -> Topology | None:
    if await exists(channel, exchange=topology.routes_exchange):
        return replace(topology, routes=RoutingState.NUMBERED)
    if await exists(channel, exchange=topology.closed_routes_exchange):
        return replace(topology, routes=RoutingState.CLOSED)
    return None


async def claim_partitions(connection: AbstractConnection, settings: ServiceSettings) -> Topology:
    """Return the topology with the broker's number of partitions; declares one if the broker has none.

    Raises PartitionsDifferError if the setting names another number than the broker's.
    """
    topology = Topology.of(settings)
    async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
        with broker_call():
            channel = await connection.channel(publisher_confirms=False)
            found = await find_partitions(channel, topology) or await _declare_number(connection, channel, topology)
            await channel.close()
    require_equal(settings, found)
    return found


def require_equal(settings: ServiceSettings, found: Topology) -> None:
    """Raise PartitionsDifferError if the setting names another number than the broker's."""
    is_different = settings.partitions is not None and settings.partitions != found.partitions
    PARTITIONS_DIFFER.set(is_different)
    if is_different:
        raise PartitionsDifferError(settings.partitions or 0, found.partitions)


async def _declare_number(connection: AbstractConnection, channel: AbstractChannel, topology: Topology) -> Topology:
    async with hold_lock(connection, topology):
        if found := await find_partitions(channel, topology):
            return found
        has_former_exchange = await exists(channel, exchange=topology.commands_exchange)
        number = topology.partitions
        if has_former_exchange or not number:  # workers from before 1.0 had it in their settings
            number = await count_queues(channel, topology) or number or FIRST_PARTITIONS
        declared = replace(topology, partitions=number)
        if not await _has_had_number(channel, topology):
            await declared.declare_former_routes(channel)
        await declared.declare_number(channel)
    log.info("number of partitions declared", partitions=number)
    return declared


async def count_queues(channel: AbstractChannel, topology: Topology) -> int:
    """Return how many command queues there are, counted up to the first that is missing."""
    number = 0
    while number < MAX_PARTITIONS and await exists(channel, queue=topology.command_queue(number)):
        number += 1
    return number


@asynccontextmanager
async def hold_lock(connection: AbstractConnection, topology: Topology, wait_seconds: float = 0) -> AsyncIterator[None]:
    """Prevent others from declaring or changing the number during the block; raises PartitionsLockedError.

    The lock is an exclusive queue, so the broker releases it with the connection, soon after the process is killed.
    """
    now = asyncio.get_running_loop().time
    waits_until = now() + wait_seconds
    while True:
        channel = await connection.channel(publisher_confirms=False)
        try:
            lock = await channel.declare_queue(topology.command_queue(LOCK_NUMBER), exclusive=True)
            break
        except ChannelLockedResource:  # which has closed the channel
            if now() >= waits_until:
                raise PartitionsLockedError("another process is changing the number of partitions") from None
        await asyncio.sleep(ABSENT_CHECK_SECONDS)
    try:
        yield
    finally:
        with broker_call():
            await lock.delete(if_unused=False, if_empty=False)
            await channel.close()


async def wait_until_declared(channel: AbstractChannel, topology: Topology) -> Topology:
    """Wait until a worker has declared the exchange for commands; returns the topology with the broker's number.

    Raises a broker error if the connection ends first.
    """
    is_logged = False
    while not (found := await _find_declared(channel, topology)):
        if not is_logged:
            log.warning("no worker has declared the queues yet; waiting for one", exchange=topology.commands_exchange)
        is_logged = True
        await asyncio.sleep(ABSENT_CHECK_SECONDS)
    return found


async def _find_declared(channel: AbstractChannel, topology: Topology) -> Topology | None:
    async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
        if not await exists(channel, exchange=topology.commands_exchange):
            return None
        if (found := await find_partitions(channel, topology)) or await _has_had_number(channel, topology):
            return found
        # Workers from before 1.0 take the number from their settings.
        return replace(topology, partitions=topology.partitions or FORMER_PARTITIONS, routes=RoutingState.UNNUMBERED)


async def wait_until_changed(connection: AbstractConnection, topology: Topology) -> None:
    """Wait until the broker's number of partitions differs from the topology's, or it has none."""
    channel: AbstractChannel | None = None
    while True:
        with suppress(*BROKER_ERRORS):  # another task watches for a lost connection
            if not await is_blocked(connection):
                async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                    with broker_call():
                        channel = channel or await connection.channel(publisher_confirms=False)
                        if await _has_changed(channel, topology):
                            break
        await asyncio.sleep(CHECK_SECONDS)
    log.warning("the number of partitions has changed", former=topology.partitions)


async def _has_changed(channel: AbstractChannel, topology: Topology) -> bool:
    if topology.routes is RoutingState.UNNUMBERED:
        return await exists(channel, exchange=topology.former_routes_exchange)
    return not await topology.is_current(channel)


async def require_partitions(channel: AbstractChannel, topology: Topology) -> Topology:
    """Return the topology with the broker's number of partitions; raises ConnectionError if it has none."""
    if found := await find_partitions(channel, topology):
        return found
    raise ConnectionError("no worker of this version has declared the queues yet; start one")


async def read_partitions(settings: ServiceSettings, name: str) -> Topology:
    """Like `require_partitions`, on a new connection; raises a broker error."""
    async with open_connection(settings.broker_url, name) as connection, asyncio.timeout(SETUP_TIMEOUT_SECONDS):
        with broker_call():
            return await require_partitions(await connection.channel(), Topology.of(settings))
