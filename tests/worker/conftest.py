"""What several tests of the worker use: a running worker, its command line, and a channel to the broker."""

from collections.abc import AsyncIterator

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from dev.backend import Services
from shared.contracts import COMMANDS_CONTENT_TYPE, Command, encode_batch, encode_command
from shared.messaging import Topology
from tests.support import harness
from tests.support.commands import Publish
from tests.support.operator import Operator
from worker.settings import WorkerSettings


@pytest.fixture
async def worker(worker_settings: WorkerSettings) -> AsyncIterator[None]:
    """A running worker for the test."""
    async with harness.worker(worker_settings):
        yield


@pytest.fixture
def operator(worker_settings: WorkerSettings, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(worker_settings, capsys)


@pytest.fixture
async def channel(servers: Services) -> AsyncIterator[AbstractChannel]:
    """An administrator's channel."""
    async with await aio_pika.connect(servers.broker_url) as connection:
        yield await connection.channel(on_return_raises=True)


@pytest.fixture
async def publish(channel: AbstractChannel, worker_settings: WorkerSettings) -> Publish:
    """Publishes commands, or other events, as one message to the first partition; declares the queues."""
    topology = Topology.of(worker_settings)
    await harness.declare_on(channel, topology)

    async def publish(*events: Command | bytes) -> None:
        encoded = [event if isinstance(event, bytes) else encode_command(event) for event in events]
        message = aio_pika.Message(encode_batch(encoded), content_type=COMMANDS_CONTENT_TYPE)
        await channel.default_exchange.publish(message, topology.command_queue(0))

    return publish
