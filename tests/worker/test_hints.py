"""Hints are sent after commits, reach every listener, and delay nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractQueue

from dev.backend import Services
from shared.connections import Connections
from shared.contracts import MAX_HINTS, Command, decode_hints, encode_hints
from shared.topology import Topology
from tests.support import harness
from tests.support.commands import Publish, create
from tests.support.harness import eventually
from worker.apply import ApplyOptions, apply_batch
from worker.hint_sender import HintSender
from worker.settings import WorkerSettings
from worker.store import ConflictError


@asynccontextmanager
async def hints(servers: Services, topology: Topology) -> AsyncIterator[AbstractQueue]:
    """A queue that receives the hints, as a gateway's does."""
    async with await aio_pika.connect(servers.hints_url_of("gateway")) as connection:
        yield await topology.bind_hints(await connection.channel(), "f" * 32)


async def test_owner_of_a_committed_batch_is_announced_with_the_revision(
    publish: Publish, servers: Services, worker_settings: WorkerSettings, database: Any
) -> None:
    async with harness.worker(worker_settings) as consumer, hints(servers, consumer.topology) as queue:
        await publish(create(), create())
        message = await eventually(lambda: queue.get(fail=False, no_ack=True))

    revision = await database.fetchval("select revision from users where id = 1")
    assert json.loads(message.body) == {"owners": [{"owner": 1, "revision": revision}]}
    assert message.delivery_mode != aio_pika.DeliveryMode.PERSISTENT


async def test_commit_comes_before_its_hint(connections: Connections, database: Any) -> None:
    seen: list[int] = []
    loop_free: list[Callable[[], Awaitable[int]]] = []

    def announce(revisions: Any) -> None:
        seen.append(revisions[1])
        loop_free.append(lambda: database.fetchval("select revision from users where id = 1"))

    await apply_batch(connections, [create()], ApplyOptions(announce=announce))

    assert seen == [await loop_free[0]()] == [1]


async def test_batch_that_is_not_committed_is_not_announced(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[object] = []

    async def fail(*_: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("worker.apply.store", fail)
    with pytest.raises((ConnectionError, ConflictError)):
        await apply_batch(connections, [create()], ApplyOptions(announce=announced.append))

    assert not announced


async def test_commands_that_were_decided_before_are_announced_again(connections: Connections) -> None:
    announced: list[Any] = []
    command: Command = create()
    for _ in range(2):
        await apply_batch(connections, [command], ApplyOptions(announce=announced.append))

    assert announced == [{1: 1}, {1: 1}]


async def test_without_a_broker_hints_wait_bounded_and_nothing_else_does(worker_settings: WorkerSettings) -> None:
    sender = HintSender(worker_settings.broker_url, Topology.of(worker_settings))

    for owner in range(3 * MAX_HINTS):
        sender.announce({owner: 1})

    assert len(sender._pending) <= MAX_HINTS


async def test_hints_that_wait_share_a_message(servers: Services, worker_settings: WorkerSettings) -> None:
    topology = Topology.of(worker_settings)
    await harness.declare(servers, topology)
    async with hints(servers, topology) as queue:
        sender = HintSender(worker_settings.broker_url, topology)
        for revision in range(1, 100):
            sender.announce({7: revision, 8: 1})
        sending = asyncio.create_task(sender.run())
        message = await eventually(lambda: queue.get(fail=False, no_ack=True))
        await asyncio.sleep(0.2)
        rest = await harness.bodies(queue)
        sending.cancel()
        await asyncio.wait([sending])

    assert decode_hints(message.body) == {7: 99, 8: 1}
    assert rest == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"owners": 1}', b"\xff", b'{"owners": [{"owner": "x", "revision": 1}]}']
)
def test_what_is_no_hint_is_none(body: bytes) -> None:
    assert decode_hints(body) == {}


def test_hint_is_read_as_it_was_written() -> None:
    assert decode_hints(encode_hints({1: 2, 3: 2**63 - 1})) == {1: 2, 3: 2**63 - 1}


async def test_deleted_exchange_of_hints_is_declared_again(
    publish: Publish, servers: Services, worker_settings: WorkerSettings
) -> None:
    async with harness.worker(worker_settings) as consumer:
        await harness.delete_changes(servers, consumer.topology)

        async def is_announced() -> bool:
            await publish(create())
            async with hints(servers, consumer.topology) as queue:
                await publish(create())
                await asyncio.sleep(0.3)
                return bool(await harness.bodies(queue))

        async def is_announced_again() -> bool:
            try:
                return await is_announced()
            except aio_pika.exceptions.AMQPError:
                return False

        await eventually(is_announced_again)
