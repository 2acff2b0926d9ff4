"""The broker ends, hangs, refuses messages, or loses a binding or a queue."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aio_pika.abc import AbstractChannel
from pydantic import Secret

from shared.broker import BROKER_ERRORS, open_connection
from shared.broker_url import BrokerUrl
from tests.faults.cluster import PREFIX, Cluster
from tests.faults.nemesis.engine import LONG, SHORT, Fault, Nemesis
from worker.repartition import drain_partition

DRAIN_SECONDS = 20.0
ROUTED_SECONDS = 1.0
"""The time for messages that the broker was routing when a binding was removed."""
NOTHING = ("^$", "^$", "^$")
DEFAULT_WATERMARK, DEFAULT_DISK_LIMIT = "0.6", "50MB"


async def broker_restarts(_: Nemesis, cluster: Cluster[Any]) -> str:
    """Restarts the node properly."""
    async with cluster.servers.rabbitmq_lock:
        await cluster.servers.rabbitmq.act("restart", timeout=20)
        await broker_answers(cluster)
    return "rabbitmq"


async def broker_is_killed(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Kills the node, and starts it soon afterwards."""
    async with cluster.servers.rabbitmq_lock:
        await cluster.servers.rabbitmq.act("kill")
        try:
            await asyncio.sleep(nemesis.seconds(SHORT))
        finally:
            await cluster.servers.rabbitmq.act("start")
        await broker_answers(cluster)
    return "rabbitmq"


async def broker_is_paused(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Freezes the node for some seconds."""
    async with cluster.servers.rabbitmq_lock:
        await cluster.servers.rabbitmq.act("pause")
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await cluster.servers.rabbitmq.act("unpause")
    return "rabbitmq"


async def broker_answers(cluster: Cluster[Any]) -> None:
    """Returns when the broker has started; its start belongs to the fault."""
    while True:
        try:
            async with asyncio.timeout(5), cluster.channel():
                return
        except (*BROKER_ERRORS, RuntimeError):  # aiormq raises StopAsyncIteration, which becomes a RuntimeError here
            await asyncio.sleep(0.3)


def alarm(setting: str, alarming: str, usual: str) -> Fault:
    """Makes the broker believe that it runs out of something, so that it blocks every publisher."""

    async def sound(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
        async with cluster.servers.rabbitmq_lock:
            await cluster.servers.rabbitmqctl(setting, *alarming.split())
            try:
                await asyncio.sleep(nemesis.seconds(LONG))
            finally:
                await cluster.servers.rabbitmqctl(setting, *usual.split())
        return "rabbitmq"

    return sound


async def queue_is_full(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Lets each command queue hold a single message."""
    async with cluster.servers.rabbitmq_lock:
        full, pattern = json.dumps({"max-length": 1}), rf"^{PREFIX}\.commands"
        await cluster.servers.rabbitmqctl("set_policy", "full", pattern, full, "--apply-to", "quorum_queues")
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await cluster.servers.rabbitmqctl("clear_policy", "full")
        await asyncio.sleep(1)  # until it is gone everywhere
    return "rabbitmq"


async def connections_are_closed(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """An operator closes every connection, several times."""
    async with cluster.servers.rabbitmq_lock:
        for _ in range(nemesis.pick(1, 3)):
            await cluster.servers.rabbitmqctl("close_all_connections", "nemesis")
            await asyncio.sleep(nemesis.seconds(SHORT))
    return "rabbitmq"


async def rights_are_revoked(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Takes every right from the gateways' or the workers' user, closes its connections, and gives them back."""
    user = f"inkwell_{nemesis.pick('gateway', 'worker')}"
    async with cluster.servers.rabbitmq_lock:
        listed = await cluster.servers.rabbitmqctl("--formatter", "json", "list_user_permissions", user)
        given = json.loads(listed)  # in each virtual host
        try:
            for rights in given:
                await cluster.servers.rabbitmqctl("set_permissions", "--vhost", rights["vhost"], user, *NOTHING)
            await cluster.servers.rabbitmqctl("close_all_user_connections", user, "nemesis")
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            for rights in given:
                patterns = (rights["configure"], rights["write"], rights["read"])
                await cluster.servers.rabbitmqctl("set_permissions", "--vhost", rights["vhost"], user, *patterns)
    return user


async def queue_is_unbound(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Takes the route to a partition's queue away, and gives it back."""
    partition = nemesis.partition()
    async with cluster.servers.rabbitmq_lock, unbound(cluster, partition):
        await asyncio.sleep(nemesis.seconds(LONG))
    return cluster.topology.command_queue(partition)


async def queue_is_deleted(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Deletes a partition's queue once everything in it is applied; the workers have to notice and to remake it."""
    partition = nemesis.partition()
    queue = cluster.topology.command_queue(partition)
    async with cluster.servers.rabbitmq_lock:
        async with unbound(cluster, partition) as channel:
            await asyncio.sleep(ROUTED_SECONDS)
            if is_empty := await are_drained(cluster, [partition]):
                await channel.queue_delete(queue)
        return queue if is_empty else f"{queue}, which was not empty"


@asynccontextmanager
async def unbound(cluster: Cluster[Any], partition: int) -> AsyncIterator[AbstractChannel]:
    """Remove the route to a partition's queue, and bring it back if the queue is still there."""
    async with cluster.channel() as channel:
        await cluster.topology.unbind_partition(channel, partition)
        try:
            yield channel
        finally:
            await cluster.topology.bind_existing(channel)


async def are_drained(cluster: Cluster[Any], partitions: Iterable[int]) -> bool:
    """Whether the workers commit everything that is queued now, within a time."""
    url = Secret(BrokerUrl.parse(cluster.servers.services.broker_url))
    async with open_connection(url, "nemesis") as connection:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                for partition in partitions:
                    await drain_partition(connection, cluster.topology, partition)
        except TimeoutError:
            return False
    return True


OF_ONE_NODE: dict[str, Fault] = {
    "broker-restart": broker_restarts,
    "broker-kill": broker_is_killed,
    "broker-pause": broker_is_paused,
}
FAULTS: dict[str, Fault] = {
    "memory-alarm": alarm("set_vm_memory_high_watermark", "absolute 1MB", DEFAULT_WATERMARK),
    "disk-alarm": alarm("set_disk_free_limit", "100000GB", DEFAULT_DISK_LIMIT),
    "queue-full": queue_is_full,
    "queue-unbound": queue_is_unbound,
    "queue-deleted": queue_is_deleted,
    "broker-connections-closed": connections_are_closed,
    "broker-rights-revoked": rights_are_revoked,
}
