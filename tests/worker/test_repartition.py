"""The number of partitions: where workers and gateways get it, and how an operator changes it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity
from asyncpg import Connection, Record

from dev.backend import Services
from gateway.settings import GatewaySettings
from shared.partitions import find_partitions, hold_lock
from shared.queues import exists
from shared.topology import RoutingState, Topology
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from worker import repartition as repartition_module
from worker.command_line import change_partitions, read_arguments
from worker.consumer import Consumer
from worker.settings import WorkerSettings

ASYNCHRONOUSLY = {"Prefer": "respond-async"}


@pytest.fixture
def unset(worker_settings: WorkerSettings) -> WorkerSettings:
    """Settings without a number of partitions."""
    return worker_settings.model_copy(update={"partitions": None})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repartition_module, "SETTLE_SECONDS", 0.1)


async def operator(settings: WorkerSettings, partitions: int) -> int:
    """Runs `python -m worker repartition`; returns the exit code."""
    return await change_partitions(read_arguments(["repartition", str(partitions)]), settings)


async def number_of(channel: AbstractChannel, settings: WorkerSettings) -> int | None:
    found = await find_partitions(channel, Topology(settings.queue_prefix, 0))
    return found.partitions if found else None


async def queues(channel: AbstractChannel, settings: WorkerSettings) -> list[int]:
    """The numbers of the command queues that exist."""
    topology = Topology(settings.queue_prefix, 0)
    return [number for number in range(10) if await exists(channel, queue=topology.command_queue(number))]


async def consumes(consumer: Consumer, partitions: int) -> bool:
    return consumer.partitions == set(range(partitions))


async def declare_as_before(channel: AbstractChannel, settings: WorkerSettings, partitions: int) -> None:
    """Declares the queues of the previous version, which has the number only in the queues' names."""
    topology = Topology(settings.queue_prefix, partitions)
    await channel.declare_exchange(topology.commands_exchange, durable=True)
    for partition in range(partitions):
        await topology.declare_command_queue(channel, partition)
        queue = await channel.get_queue(topology.command_queue(partition))
        await queue.bind(topology.commands_exchange, queue.name)


async def test_broker_without_a_number_gets_one_partition_unless_the_setting_says_otherwise(
    channel: AbstractChannel, unset: WorkerSettings, worker_settings: WorkerSettings
) -> None:
    async with harness.worker(unset):
        assert await number_of(channel, unset) == 1
    other = worker_settings.model_copy(update={"queue_prefix": f"{unset.queue_prefix}-other"})
    async with harness.worker(other):
        assert await number_of(channel, other) == 2


async def test_deployment_of_the_version_before_keeps_its_number_where_the_setting_is_unset(
    channel: AbstractChannel, unset: WorkerSettings
) -> None:
    await declare_as_before(channel, unset, 8)

    async with harness.worker(unset) as consumer:
        assert await consumes(consumer, 8)
    assert await number_of(channel, unset) == 8


async def test_number_of_the_broker_is_found_whatever_it_is(channel: AbstractChannel, unset: WorkerSettings) -> None:
    for number in (256, 47, 3):
        topology = Topology(unset.queue_prefix, number)
        await topology.declare_number(channel)
        assert await number_of(channel, unset) == number
        await channel.exchange_delete(topology.routes_exchange)


async def test_worker_with_another_number_than_the_brokers_consumes_nothing_and_says_so(
    channel: AbstractChannel, worker_settings: WorkerSettings
) -> None:
    await harness.declare_on(channel, Topology(worker_settings.queue_prefix, 3))

    async with harness.starting_worker(worker_settings) as consumer:
        await eventually(lambda: is_different(consumer))
        status, state = await harness.readiness(consumer)
        assert not consumer.partitions

    assert (status, state["status"]) == (503, "partitions differ")
    assert await number_of(channel, worker_settings) == 3


async def is_different(consumer: Consumer) -> bool:
    return consumer.are_partitions_different


async def test_worker_with_another_number_consumes_once_the_broker_has_its_number(
    channel: AbstractChannel, worker_settings: WorkerSettings, unset: WorkerSettings
) -> None:
    await harness.declare_on(channel, Topology(worker_settings.queue_prefix, 3))
    async with harness.starting_worker(worker_settings) as waiting, harness.worker(unset) as consumer:
        await eventually(lambda: is_different(waiting))
        assert await operator(unset, 2) == 0

        await eventually(lambda: consumes(waiting, 2))
        await eventually(lambda: consumes(consumer, 2))
        assert (await harness.readiness(waiting))[0] == 200


async def test_gateway_with_another_number_refuses_writes_and_serves_reads(
    gateway_settings: GatewaySettings, unset: WorkerSettings
) -> None:
    async with harness.worker(unset), harness.gateway(gateway_settings) as client:
        assert (await client.post("/notes", json=NOTE)).status_code == 201
        assert await operator(unset, 3) == 0

        await eventually(lambda: broker_is(client, "partitions differ"))
        refused = await client.post("/notes", json=NOTE)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_accepted")
        assert len((await client.get("/notes")).json()) == 1
        assert await operator(unset, 2) == 0

        await eventually(lambda: broker_is(client, "up"))
        assert (await client.post("/notes", json=NOTE)).status_code == 201


async def broker_is(client: httpx.AsyncClient, state: str) -> bool:
    ready = await client.get("/health/ready")
    return ready.status_code == 200 and bool(ready.json()["dependencies"]["broker"] == state)


async def test_gateway_that_has_not_noticed_a_change_publishes_nothing_into_any_queue(
    channel: AbstractChannel, gateway_settings: GatewaySettings, unset: WorkerSettings
) -> None:
    """The broker returns its messages, although queues of all its partitions still exist."""
    async with harness.gateway(gateway_settings) as client:
        assert (await client.post("/notes", json=NOTE, headers=ASYNCHRONOUSLY)).status_code == 202
        topology = Topology.of(gateway_settings)
        await topology.close_routes(channel)
        await harness.declare_on(channel, Topology(unset.queue_prefix, 3))

        refused = await client.post("/notes", json=NOTE, headers=ASYNCHRONOUSLY)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_accepted")


async def test_gateway_without_a_setting_takes_a_new_number_up_by_itself(
    gateway_settings: GatewaySettings, unset: WorkerSettings
) -> None:
    settings = gateway_settings.model_copy(update={"partitions": None})
    async with harness.worker(unset) as consumer, harness.gateway(settings) as client:
        assert (await client.post("/notes", json=NOTE)).status_code == 201
        for number in (5, 1):
            assert await operator(unset, number) == 0

            await eventually(lambda: is_created(client))
            assert await consumes(consumer, number)


async def is_created(client: httpx.AsyncClient) -> bool:
    response = await client.post("/notes", json=NOTE)
    assert response.status_code == 201 or response.json()["code"] == "not_accepted"
    return response.status_code == 201


async def test_write_that_comes_before_the_number_is_known_waits_for_it(
    servers: Services, gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    await harness.delete(servers, Topology.of(gateway_settings))
    async with harness.gateway(gateway_settings.model_copy(update={"partitions": None})) as client:
        written = asyncio.create_task(client.post("/notes", json=NOTE))
        await asyncio.sleep(0)
        async with harness.worker(worker_settings):
            if (await written).status_code == 503:  # published between the declaration of the number and of its routes
                written = asyncio.create_task(client.post("/notes", json=NOTE))
            assert (await written).status_code == 201


async def test_change_is_refused_without_harm_while_no_worker_applies_what_is_queued(
    channel: AbstractChannel,
    gateway_settings: GatewaySettings,
    unset: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(repartition_module, "DRAIN_TIMEOUT_SECONDS", 0.5)
    async with harness.gateway(gateway_settings) as client:
        assert await operator(unset, 3) == 1

        assert "partitions 0, 1" in capsys.readouterr().err
        assert (await client.post("/notes", json=NOTE, headers=ASYNCHRONOUSLY)).status_code == 202
    assert await number_of(channel, unset) == 2


async def test_change_is_taken_back_if_the_worker_stops_applying_while_writes_are_refused(
    channel: AbstractChannel, gateway_settings: GatewaySettings, unset: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain, drained = repartition_module.drain, 0

    async def drain_once(*arguments: Any) -> None:
        nonlocal drained
        drained += 1
        if drained > 1:
            raise repartition_module.NotDoneError
        await drain(*arguments)

    monkeypatch.setattr(repartition_module, "drain", drain_once)
    async with harness.worker(unset), harness.gateway(gateway_settings) as client:
        assert await operator(unset, 3) == 1

        assert (await client.post("/notes", json=NOTE)).status_code == 201
    found = await find_partitions(channel, Topology.of(gateway_settings))
    assert found
    assert (found.partitions, found.routes) == (2, RoutingState.NUMBERED)


async def test_worker_that_starts_while_the_routes_are_closed_applies_what_is_queued_and_opens_no_route(
    channel: AbstractChannel, gateway_settings: GatewaySettings, unset: WorkerSettings, database: "Connection[Record]"
) -> None:
    topology = Topology.of(gateway_settings)
    async with harness.gateway(gateway_settings) as client:
        assert (await client.post("/notes", json=NOTE, headers=ASYNCHRONOUSLY)).status_code == 202
        await topology.close_routes(channel)
        async with harness.worker(unset):
            await eventually(lambda: has_notes(database, 1))
            assert (await client.post("/notes", json=NOTE)).status_code == 503

            assert await operator(unset, 3) == 0  # as after an interruption
    assert await number_of(channel, unset) == 3


async def has_notes(database: "Connection[Record]", number: int) -> bool:
    return bool(await database.fetchval("select count(*) from notes") == number)


async def test_worker_that_binds_late_opens_no_route_again(channel: AbstractChannel, unset: WorkerSettings) -> None:
    topology = Topology(unset.queue_prefix, 2)
    await harness.declare_on(channel, topology)
    await topology.close_routes(channel)

    exchange = await channel.get_exchange(topology.routes_exchange, ensure=False)
    with pytest.raises(ChannelNotFoundEntity):  # like a worker that has looked it up before
        await exchange.bind(topology.commands_exchange, topology.routing_key(0))


async def test_number_that_was_lost_in_a_change_is_that_of_the_queues_and_former_routes_stay_closed(
    channel: AbstractChannel, gateway_settings: GatewaySettings, unset: WorkerSettings
) -> None:
    """As after an interruption between deleting the old number and declaring the new one."""
    topology = Topology.of(gateway_settings)
    await topology.close_routes(channel)
    await channel.exchange_delete(topology.closed_routes_exchange)
    async with harness.gateway(gateway_settings.model_copy(update={"publish_timeout_seconds": 0.5})) as client:
        assert (await client.post("/notes", json=NOTE)).status_code == 503
        async with harness.worker(unset) as consumer:
            assert await consumes(consumer, topology.partitions)
            await eventually(lambda: is_created(client))
    assert not await exists(channel, exchange=topology.former_routes_exchange)


MORE, FEWER = (2, 4), (4, 1)
MOMENTS = [
    (numbers, step, calls)
    for numbers in (MORE, FEWER)
    for step, each in {
        "drain": [1, 2],
        "declare_command_queue": [1],
        "close_routes": [0, 1],
        "open_routes": [1],
        "bind_partition": [0, 1],
        "delete_others": [1],
        "move": [0, 1, 2] if numbers == FEWER else [],
    }.items()
    for calls in each
]
"""The old number and the new one, a step of the change, and how often it is run before an interruption.

An interruption before a step is one after the step before it.
"""


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
async def test_change_that_was_interrupted_is_completed_when_it_is_run_again(
    channel: AbstractChannel,
    unset: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    moment: tuple[tuple[int, int], str, int],
) -> None:
    (former, number), step, calls = moment
    await harness.declare_on(channel, Topology(unset.queue_prefix, former))
    owner: Any = repartition_module if hasattr(repartition_module, step) else Topology
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, interrupted(getattr(owner, step), calls))
        async with harness.worker(unset):
            assert await operator(unset, number) == 1
    async with harness.worker(unset) as consumer:
        assert await operator(unset, number) == 0

        await eventually(lambda: consumes(consumer, number))
        assert await queues(channel, unset) == list(range(number))
        found = await find_partitions(channel, Topology(unset.queue_prefix, number))
        assert found == Topology(unset.queue_prefix, number)


def interrupted(step: Callable[..., Awaitable[Any]], calls: int) -> Callable[..., Awaitable[Any]]:
    """The step, which loses its connection after this many calls; calls by other tasks are not counted."""
    task, done = asyncio.current_task(), 0

    async def run(*arguments: Any) -> Any:
        nonlocal done
        is_ours = asyncio.current_task() is task
        result = await step(*arguments) if calls or not is_ours else None
        done += is_ours
        if is_ours and done >= calls:
            raise ConnectionResetError
        return result

    return run


async def test_two_changes_at_once_do_not_meet(
    unset: WorkerSettings, servers: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repartition_module, "LOCK_TIMEOUT_SECONDS", 1.0)
    topology = Topology(unset.queue_prefix, 2)
    await harness.declare(servers, topology)
    async with await aio_pika.connect(servers.broker_url_of("worker")) as connection, hold_lock(connection, topology):
        assert await operator(unset, 3) == 1

    assert "another process is changing the number of partitions" in capsys.readouterr().err


async def test_change_waits_until_the_broker_notices_that_an_interrupted_one_is_gone(
    unset: WorkerSettings, servers: Services
) -> None:
    topology = Topology(unset.queue_prefix, 2)
    await harness.declare(servers, topology)
    async with await aio_pika.connect(servers.broker_url_of("worker")) as connection, hold_lock(connection, topology):
        change = asyncio.create_task(operator(unset, 2))
        await asyncio.sleep(1)

    assert await change == 0
