"""Workers that come and go share the partitions; each owner's writes are applied in the order of sending."""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from testcontainers.core.container import DockerContainer

from dev.backend import Services, as_user
from dev.containers import rabbitmq_server
from dev.definitions import ADMINISTRATOR
from shared.topology import Topology
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from tests.support.proxy import free_port
from tests.support.stack import Process, Stack, running_stack
from tests.system.writers import Writer, all_go_on, are_decided, check_order, headers_of, new_owners, writing

SHARING_SECONDS = float(os.environ.get("SHARING_SECONDS", "25"))
"""For how long workers come and go."""
PARTITIONS = 8
WORKERS = 3
TAKEOVER_SECONDS = 20.0

Active = dict[str, list[str]]
"""The tags of the active consumers of each queue; a tag names the slot of its worker."""

pytestmark = pytest.mark.needs_docker


@dataclass
class Broker:
    """A RabbitMQ whose command-line tool lists the active consumers."""

    container: DockerContainer
    port: int

    def beside(self, database_url: str) -> Services:
        """This broker together with the Postgres of the URL."""
        broker_url = f"amqp://{ADMINISTRATOR}:{ADMINISTRATOR}@127.0.0.1:{self.port}/"
        return Services(database_url, broker_url, has_broker_users=True)

    async def active(self, prefix: str) -> Active:
        """The active consumer of each queue with the prefix."""
        command = ["rabbitmqctl", "-q", "--formatter", "json", "list_consumers", "queue_name", "consumer_tag", "active"]
        result = await asyncio.to_thread(self.container.exec, command)
        assert result.exit_code == 0, result.output
        active: Active = {}
        for consumer in json.loads(result.output):
            if consumer["queue_name"].startswith(prefix) and consumer["active"]:
                active.setdefault(consumer["queue_name"], []).append(consumer["consumer_tag"])
        return active


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    port = free_port()
    with rabbitmq_server().with_bind_ports(5672, port) as container:
        yield Broker(container, port)


@pytest.fixture
async def stack(database_url: str, broker: Broker, tmp_path: Path) -> AsyncIterator[Stack]:
    prefix = f"test-{uuid4().hex[:12]}"
    servers = broker.beside(database_url)
    async with running_stack(database_url, servers, prefix, tmp_path, partitions=str(PARTITIONS)) as stack:
        yield stack


@pytest.fixture
async def workers(stack: Stack, broker: Broker) -> AsyncIterator[list[Process]]:
    """Three workers without proxies, which would compete with the writers for this process."""
    await stack.worker.stop()
    straight = stack.worker.variant(
        INKWELL_BROKER_URL=broker.beside(stack.database_url).broker_url_of("worker"),
        INKWELL_DATABASE_URL=as_user(stack.database_url, "inkwell_worker", "inkwell_worker"),
    )
    workers = [straight.twin(free_port()) for _ in range(WORKERS)]
    for worker in workers:
        await worker.start()
    yield workers
    for worker in workers:
        await worker.kill()


@dataclass
class Watch:
    """Watches the active consumers."""

    broker: Broker
    prefix: str
    samples: list[Active] = field(default_factory=list)
    _stopping: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Watch"]:
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            self._stopping = True
            await task

    async def _run(self) -> None:
        while not self._stopping:
            self.samples.append(await self.broker.active(self.prefix))
            await asyncio.sleep(1)


@pytest.mark.long  # the fault runs do the same and more
async def test_writes_of_each_owner_stay_in_order_while_workers_are_killed_stopped_and_started(
    stack: Stack, workers: list[Process], broker: Broker
) -> None:
    owners = await new_owners(stack)
    assert len(set(map(Topology(stack.queue_prefix, PARTITIONS).partition_of, owners))) >= 6
    async with AsyncExitStack() as exits:
        clients = [stack.client, await exits.enter_async_context(stack.second_gateway())]
        watch = await exits.enter_async_context(Watch(broker, stack.queue_prefix).running())
        async with writing([Writer(clients, headers_of(owner, stack)) for owner in owners]) as writers:
            await disturb(workers, stack)
            await eventually(lambda: is_shared(broker, stack.queue_prefix), within_seconds=TAKEOVER_SECONDS)
        await eventually(lambda: are_decided(stack, writers), within_seconds=30, every_seconds=0.5)

    assert not [sample for sample in watch.samples if any(len(tags) > 1 for tags in sample.values())]
    await check_order(stack, owners, writers)


async def test_partitions_of_workers_that_are_killed_while_another_one_joins_are_served(
    stack: Stack, broker: Broker
) -> None:
    """With consumer priorities, RabbitMQ 4.3.6 would keep the first one that was killed as the active consumer."""
    owners = await new_owners(stack)
    joining = stack.worker.twin(free_port())
    database = await asyncpg.connect(stack.database_url)
    async with AsyncExitStack() as exits:
        exits.push_async_callback(joining.kill)
        exits.push_async_callback(database.close)
        async with database.transaction():
            await database.execute("select from users for update")
            for owner in owners:
                headers = headers_of(owner, stack) | {"Prefer": "respond-async"}
                assert (await stack.client.post("/notes/", json=NOTE, headers=headers)).status_code == 202
            await eventually(lambda: are_unacknowledged(broker, stack.queue_prefix, len(owners)))
            await joining.start()
            await stack.worker.kill()
            await stack.worker.start()
            await joining.kill()
        await eventually(lambda: have_notes(stack, len(owners)), within_seconds=TAKEOVER_SECONDS)


async def are_unacknowledged(broker: Broker, prefix: str, number: int) -> bool:
    """Whether the workers hold this number of messages."""
    command = ["rabbitmqctl", "-q", "--formatter", "json", "list_queues", "name", "messages_unacknowledged"]
    result = await asyncio.to_thread(broker.container.exec, command)
    queues = [each for each in json.loads(result.output) if each["name"].startswith(prefix)]
    return bool(sum(each["messages_unacknowledged"] for each in queues) == number)


async def have_notes(stack: Stack, number: int) -> bool:
    return bool(await stack.value("select count(distinct owner_id) from notes") == number)


async def disturb(workers: list[Process], stack: Stack) -> None:
    """Stops one or two workers again and again; another one soon takes over each partition."""
    ends = asyncio.get_running_loop().time() + SHARING_SECONDS
    while asyncio.get_running_loop().time() < ends:
        leaving = random.sample(workers, random.choice((1, 2)))  # noqa: S311 - no secret
        how = random.choice((signal.SIGKILL, signal.SIGTERM))  # noqa: S311 - no secret
        codes = await asyncio.gather(*(worker.stop(how) for worker in leaving))
        assert set(codes) == {-signal.SIGKILL if how == signal.SIGKILL else 0}
        since = await stack.value("select now()::text")
        await eventually(partial(all_go_on, stack, since), within_seconds=TAKEOVER_SECONDS, every_seconds=0.5)
        for worker in leaving:
            await worker.start()


async def is_shared(broker: Broker, prefix: str) -> bool:
    """Whether every worker is active, each partition has one, and none has more than twice its share."""
    active = Counter(tag for tags in (await broker.active(prefix)).values() for tag in tags)
    return len(active) == WORKERS and active.total() == PARTITIONS and max(active.values()) <= 2 * PARTITIONS / WORKERS
