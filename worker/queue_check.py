"""Keeps a worker from consuming a queue that was made otherwise, until an operator has mended it."""

import asyncio

import structlog
from aio_pika.abc import AbstractConnection

from shared.messaging import QUEUE_LIMIT, SETUP_TIMEOUT_SECONDS, Topology
from shared.queues import WrongQueueError

REFUSED_PAUSE_SECONDS = 10.0

log = structlog.get_logger()


async def wait_for_right_queue(
    connection: AbstractConnection, topology: Topology, partition: int, refused: set[int]
) -> None:
    """Returns once the partition's queue is there and may be consumed; the partition is in `refused` meanwhile."""
    while True:
        try:
            async with (
                asyncio.timeout(SETUP_TIMEOUT_SECONDS),
                connection.channel(publisher_confirms=False) as channel,
            ):
                differences = await topology.declare_partition(channel, partition)
        except WrongQueueError as error:
            refused.add(partition)
            log.error(
                "queue not consumed, or writes could be applied out of order",
                queue=topology.command_queue(partition),
                error=str(error),
                remedy=f"`python -m worker queues remake {partition}`, which keeps the messages in it",
                next_try_in_seconds=REFUSED_PAUSE_SECONDS,
            )
            await asyncio.sleep(REFUSED_PAUSE_SECONDS)
        else:
            refused.discard(partition)
            if differences.keys() - {QUEUE_LIMIT}:
                log.warning("queue made otherwise; see `python -m worker doctor`", partition=partition, **differences)
            return
