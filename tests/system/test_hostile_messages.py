"""An attacker publishes with the gateway's broker password; the real gateway and worker keep working."""

import asyncio
import re
import sys
from pathlib import Path

import aio_pika
import pytest
from aio_pika.exceptions import ChannelPreconditionFailed

from dev.backend import ROOT, Services
from shared.contracts import LARGEST_MESSAGE_BYTES
from shared.topology import Topology
from tests.support.harness import eventually
from tests.support.hostile import Hostile, filled, hostile_messages, publish
from tests.support.stack import Stack, running_stack

PATIENTLY = {"Prefer": "wait=10"}
SETTLED_SECONDS = 5.0
CONFIGURATIONS = ("dev/rabbitmq.conf", "k8s/components/operators/rabbitmq.yaml")
MEMORY_MIB = 800
"""Of the 1 GiB limit of a worker's container."""


async def dead_letters(servers: Services, topology: Topology) -> int:
    async with await aio_pika.connect(servers.broker_url) as connection:
        queue = await (await connection.channel()).get_queue(topology.unreadable_queue)
        return queue.declaration_result.message_count or 0


async def failed(stack: Stack) -> int:
    return int(await stack.value("select count(*) from commands where status = 'failed'"))


async def test_pair_goes_on_whatever_is_published_with_the_gateways_password(servers: Services, stack: Stack) -> None:
    owner = int((await stack.client.get("/users/me")).json()["id"])
    topology = Topology(stack.queue_prefix, 2)
    queue = topology.command_queue(topology.partition_of(owner))
    messages = hostile_messages(owner)
    assert len(messages) >= 150
    loop, seen = asyncio.get_running_loop(), [0, 0]
    surprises = []

    for message in messages:
        started = loop.time()
        await publish(servers.broker_url_of("gateway"), message, topology.commands_exchange, queue)
        written = await stack.client.post("/notes", json={"title": "good", "description": ""}, headers=PATIENTLY)

        seconds = loop.time() - started
        if written.status_code != 201 or seconds > SETTLED_SECONDS:
            surprises.append(f"{message.name}: {written.status_code} after {seconds:.1f} s")
        before, seen = seen, [await dead_letters(servers, topology), await failed(stack)]
        became = [now - then for now, then in zip(seen, before, strict=True)]
        if became not in message.expected:
            surprises.append(f"{message.name}: {became} dead letters and failed commands")
        if len(surprises) > 5:  # no progress is possible, and each of the others would take as long
            break
    assert not surprises, "; ".join(surprises)
    assert not stack.worker.events("batch not applied; it stays unacknowledged and is tried again")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_worker_holds_many_of_the_largest_messages_in_the_memory_that_it_has(
    servers: Services, database_url: str, queue_prefix: str, tmp_path: Path
) -> None:
    topology = Topology(queue_prefix, 8)
    largest = Hostile("objects", filled(b"[", b'{"a":1}', b"]"))
    async with running_stack(database_url, servers, queue_prefix, tmp_path, partitions="8") as stack:
        stack.links["worker-database"].freeze("up")  # nothing is acknowledged for a while
        for number in range(64):
            queue = topology.command_queue(number % topology.partitions)
            await publish(servers.broker_url_of("gateway"), largest, topology.commands_exchange, queue)
        stack.links["worker-database"].thaw()
        await eventually(lambda: has_dead_letters(servers, topology, 64), within_seconds=60)

        assert peak_kib(stack.worker.pid) < MEMORY_MIB * 1024
        written = await stack.client.post("/notes", json={"title": "good", "description": ""}, headers=PATIENTLY)
        assert written.status_code == 201


def peak_kib(pid: int) -> int:
    """The peak memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


async def has_dead_letters(servers: Services, topology: Topology, number: int) -> bool:
    return await dead_letters(servers, topology) == number


async def test_broker_takes_no_message_that_is_larger_than_a_gateways(servers: Services, stack: Stack) -> None:
    if not servers.has_broker_users:
        pytest.skip("INKWELL_BROKER_URL names a RabbitMQ that may take messages of any size")
    topology = Topology(stack.queue_prefix, 2)
    async with await aio_pika.connect(servers.broker_url_of("gateway")) as connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(topology.commands_exchange, ensure=False)
        await exchange.publish(aio_pika.Message(b"x" * LARGEST_MESSAGE_BYTES), topology.command_queue(0))
        with pytest.raises(ChannelPreconditionFailed, match="larger than"):
            await exchange.publish(aio_pika.Message(b"x" * (LARGEST_MESSAGE_BYTES + 1)), topology.command_queue(0))


def test_every_configuration_of_the_broker_has_the_limit_that_the_services_count_on() -> None:
    for name in CONFIGURATIONS:
        [limit] = re.findall(r"^ *max_message_size = (\d+)$", (ROOT / name).read_text(), re.MULTILINE)
        assert int(limit) == LARGEST_MESSAGE_BYTES, name
