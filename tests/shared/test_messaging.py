"""The topology, and the AMQP library's behavior when a connection is lost."""

import asyncio
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from shared.broker import broker_call, choose_backoff, keep_running
from shared.queues import exists
from shared.topology import Topology


def test_owner_keeps_its_partition_in_every_version() -> None:
    topology = Topology("inkwell", 8)

    assert [topology.partition_of(owner) for owner in (1, 2, 3, 1000, 2**40)] == [7, 5, 3, 7, 1]


def test_owners_spread_over_the_partitions() -> None:
    topology = Topology("inkwell", 8)
    counts = [0] * 8
    for owner in range(8000):
        counts[topology.partition_of(owner)] += 1

    assert min(counts) > 800


async def test_cancellation_without_a_request_is_a_broker_error() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()

    with pytest.raises(ConnectionError), broker_call():
        await future


async def test_cancellation_of_the_task_stays_one() -> None:
    async def wait() -> None:
        with broker_call():
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_deadline_within_a_broker_call_stays_a_timeout() -> None:
    async def wait() -> None:
        async with asyncio.timeout(0.01):
            with broker_call():
                await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await wait()


@pytest.mark.parametrize("error", [Exception(), RuntimeError("not opened"), StopAsyncIteration()])
def test_anything_else_is_a_broker_error(error: Exception) -> None:
    with pytest.raises(ConnectionError), broker_call():
        raise error


def test_pauses_grow_to_their_limit_and_never_beyond() -> None:
    assert all(0 < choose_backoff(failures) <= 5 for failures in range(100))
    assert max(choose_backoff(20) for _ in range(20)) > 4


async def test_cancellation_that_meets_the_brokers_no_is_not_forgotten() -> None:
    class Asking:
        """A channel whose task is cancelled just as the broker closes it, in aiormq's state of that moment."""

        async def queue_declare(self, *_: object, **__: object) -> None:
            task = asyncio.current_task()
            assert task
            task.cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                raise ChannelNotFoundEntity from None

    connection = AsyncMock()
    connection.channel.return_value = Asking()
    channel = AsyncMock()
    channel.get_underlay_channel.return_value = SimpleNamespace(connection=connection)

    asking = asyncio.create_task(exists(channel, queue="any"))

    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_session_that_ends_with_an_error_when_it_is_cancelled_is_not_restarted() -> None:
    async def session() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("the channel was closed in the same moment") from None

    running = asyncio.create_task(keep_running(session, "test"))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=5)

    assert running.cancelled()
