"""Keeps a worker from consuming a queue with wrong arguments until an operator has remade it."""

import asyncio

import structlog
from aio_pika.abc import AbstractConnection

from shared.messaging import QUEUE_LIMIT, SETUP_TIMEOUT_SECONDS, Topology
from shared.queues import QueueMismatchError

REFUSED_PAUSE_SECONDS = 10.0

log = structlog.get_logger()


async def wait_for_correct_queue(
    connection: AbstractConnection, topology: Topology, partition: int, refused: set[int]
) -> None:
    """Wait until the partition's queue may be consumed; meanwhile the partition is in `refused`."""
    while True:
        try:
            async with (
                asyncio.timeout(SETUP_TIMEOUT_SECONDS),
                connection.channel(publisher_confirms=False) as channel,
            ):
                differences = await topology.declare_partition(channel, partition)
        except QueueMismatchError as error:
            refused.add(partition)
            log.error(
                "queue not consumed; its arguments would allow writes out of order",
                queue=topology.command_queue(partition),
                error=str(error),
                remedy=f"`python -m worker queues remake {partition}`, which keeps its messages",
                next_try_in_seconds=REFUSED_PAUSE_SECONDS,
            )
            await asyncio.sleep(REFUSED_PAUSE_SECONDS)
        else:
            refused.discard(partition)
            if differences.keys() - {QUEUE_LIMIT}:
                log.warning(
                    "queue arguments differ; see `python -m worker doctor`",
                    partition=partition,
                    **differences,
                )
            return
