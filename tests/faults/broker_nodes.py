"""Three RabbitMQ nodes as one cluster, each command queue on all of them, and their faults.

The services name all three. The nodes reach each other over a network of their own, from which a partition takes one.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from docker.models.containers import Container
from docker.models.networks import Network as DockerNetwork
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from dev.containers import image
from dev.definitions import ADMINISTRATOR, definitions_for_tests
from shared.contracts import LARGEST_MESSAGE_BYTES
from tests.faults.cluster import PREFIX, Cluster
from tests.faults.history import EVERYTHING
from tests.faults.nemesis import LONG, Fault, Nemesis
from tests.faults.servers import Broker, Servers
from tests.support.harness import eventually
from tests.support.proxy import free_port

NODES = 3
PARTED = (5.0, 40.0)
"""Seconds; some partitions and hangs end before the nodes notice them, others do not."""
COOKIE = "inkwell-faults"
START = """
echo "$COOKIE" > /var/lib/rabbitmq/.erlang.cookie
chown rabbitmq /var/lib/rabbitmq/.erlang.cookie
chmod 400 /var/lib/rabbitmq/.erlang.cookie
echo "$DEFINITIONS" > /etc/rabbitmq/definitions.json
echo "$CONFIGURATION" > /etc/rabbitmq/conf.d/cluster.conf
until getent hosts rabbit-1 rabbit-2 rabbit-3 > /dev/null; do sleep 0.1; done
exec docker-entrypoint.sh rabbitmq-server
"""
CLUSTER_SETTINGS = ("consumer_disconnected_timeout = 5000", "net_ticktime = 15")
CONFIGURATION = "\n".join(
    [
        "load_definitions = /etc/rabbitmq/definitions.json",
        f"max_message_size = {LARGEST_MESSAGE_BYTES}",
        *CLUSTER_SETTINGS,
        "cluster_formation.peer_discovery_backend = classic_config",
        *(f"cluster_formation.classic_config.nodes.{node} = rabbit@rabbit-{node}" for node in range(1, NODES + 1)),
    ]
)


@dataclass
class BrokerNodes(Broker):
    """The three nodes of a broker."""

    peers: Network
    nodes: list[DockerContainer]
    down: set[int] = field(default_factory=set)
    """The nodes that a fault has left killed."""

    @property
    def node(self) -> DockerContainer:
        running: DockerContainer = self.nodes[min({*range(NODES)} - self.down)]
        return running

    async def leader(self) -> int:
        """Return the node with the most leaders of command queues."""
        listed = json.loads(await self.ctl("--formatter", "json", "list_queues", "name", "leader"))
        leaders = Counter(queue["leader"] for queue in listed if queue["name"].startswith(f"{PREFIX}.commands"))
        return int(leaders.most_common(1)[0][0].rpartition("-")[2]) - 1

    async def act_on(self, nodes: Iterable[int], what: str) -> None:
        """Kill, start, pause or unpause nodes, all at once."""
        await asyncio.gather(*(asyncio.to_thread(getattr(self.container_of(node), what)) for node in nodes))

    def container_of(self, node: int) -> Container:
        """Return the container of a node."""
        container: Container = self.nodes[node].get_wrapped_container()
        return container

    def join(self, node: int) -> None:
        """Connect a node to the others."""
        docker_of(self.peers).connect(self.container_of(node), aliases=[f"rabbit-{node + 1}"])

    def isolate(self, node: int) -> None:
        """Disconnect a node from the others; it still serves clients."""
        docker_of(self.peers).disconnect(self.container_of(node))

    async def repair(self) -> None:
        """Start the killed nodes, and wait until each queue has a replica on every node again."""
        await self.act_on(self.down, "start")
        self.down.clear()
        await eventually(self._is_whole, within_seconds=120, every_seconds=0.5)

    async def _is_whole(self) -> bool:
        try:
            listed = json.loads(await self.ctl("--formatter", "json", "list_queues", "name", "online"))
        except AssertionError:
            return False
        online = [queue["online"] for queue in listed if queue["name"].startswith(f"{PREFIX}.commands")]
        return all(len(nodes) == NODES for nodes in online)


def docker_of(network: Network) -> DockerNetwork:
    """Return Docker's own object, which has more methods."""
    assert network._network
    return network._network


@asynccontextmanager
async def broker_nodes() -> AsyncIterator[BrokerNodes]:
    """The three nodes for the block."""
    ports = [free_port() for _ in range(NODES)]
    url = f"amqp://{ADMINISTRATOR}:{ADMINISTRATOR}@{','.join(f'127.0.0.1:{port}' for port in ports)}/"
    internal = Network(docker_network_kw={"internal": True})  # without a gateway, so clients' connections never use it
    with internal as peers:
        nodes = [node(number, port) for number, port in enumerate(ports, 1)]
        broker = BrokerNodes(url, peers, nodes)
        try:
            for number in range(NODES):
                nodes[number].start()
                broker.join(number)
            await eventually(lambda: has_formed(broker), within_seconds=120, every_seconds=0.5)
            yield broker
        finally:
            for each in nodes:
                each.stop()


def node(number: int, port: int) -> DockerContainer:
    """Return a node that is not started yet."""
    return (
        DockerContainer(image("RABBITMQ_IMAGE"))
        .with_kwargs(hostname=f"rabbit-{number}")
        .with_env("COOKIE", COOKIE)
        .with_env("DEFINITIONS", definitions_for_tests())
        .with_env("CONFIGURATION", CONFIGURATION)
        .with_command(["sh", "-c", START])
        .with_bind_ports(5672, port)
    )


async def has_formed(broker: BrokerNodes) -> bool:
    """Whether the nodes form one cluster."""
    try:
        status: dict[str, Any] = json.loads(await broker.ctl("cluster_status", "--formatter", "json"))
    except (AssertionError, ValueError):
        return False
    return len(status["running_nodes"]) == NODES


@asynccontextmanager
async def whole_broker(cluster: Cluster[Servers[Any, BrokerNodes]]) -> AsyncIterator[BrokerNodes]:
    """The broker with all of its nodes, for one fault alone."""
    broker = cluster.servers.rabbitmq
    async with broker.lock:
        if broker.down:  # another fault of the round has left one killed
            await broker.repair()
        yield broker


async def leader_is_killed(_: Nemesis, cluster: Cluster[Servers[Any, BrokerNodes]]) -> str:
    """Kill the node with the queues' leaders until everything is served again."""
    async with whole_broker(cluster) as broker:
        return await stays_killed(broker, await broker.leader())


async def follower_is_killed(_: Nemesis, cluster: Cluster[Servers[Any, BrokerNodes]]) -> str:
    """Kill another node until everything is served again."""
    async with whole_broker(cluster) as broker:
        return await stays_killed(broker, (await broker.leader() + 1) % NODES)


async def stays_killed(broker: BrokerNodes, node: int) -> str:
    """Kill a node, which `repair` starts again."""
    await broker.act_on([node], "kill")
    broker.down.add(node)
    return f"rabbit-{node + 1}"


async def leader_hangs(nemesis: Nemesis, cluster: Cluster[Servers[Any, BrokerNodes]]) -> str:
    """Pause the node with the queues' leaders for a while: it accepts connections but answers nothing."""
    async with whole_broker(cluster) as broker:
        leader = await broker.leader()
        await broker.act_on([leader], "pause")
        try:
            await asyncio.sleep(nemesis.seconds(PARTED))
        finally:
            await broker.act_on([leader], "unpause")
        return f"rabbit-{leader + 1}"


async def majority_is_killed(nemesis: Nemesis, cluster: Cluster[Servers[Any, BrokerNodes]]) -> str:
    """Kill two of the three nodes for a while."""
    async with whole_broker(cluster) as broker:
        first = await broker.leader()
        nodes = [(first + each) % NODES for each in range(2)]
        await broker.act_on(nodes, "kill")
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await broker.act_on(nodes, "start")
        return ", ".join(f"rabbit-{each + 1}" for each in nodes)


async def all_are_killed(nemesis: Nemesis, cluster: Cluster[Servers[Any, BrokerNodes]]) -> str:
    """A power cut: kill all nodes, Postgres and all services at once, and start them again."""
    postgres = cluster.servers.postgres
    async with AsyncExitStack() as locks:
        for service in cluster.services:
            await locks.enter_async_context(service.lock)
        await locks.enter_async_context(postgres.lock)
        broker = await locks.enter_async_context(whole_broker(cluster))
        await asyncio.gather(
            postgres.act("kill"),
            broker.act_on(range(NODES), "kill"),
            *(service.process.kill() for service in cluster.services),
        )
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await asyncio.gather(
                postgres.act("start"),
                broker.act_on(range(NODES), "start"),
                *(service.process.start(ready=False) for service in cluster.services),
            )
    return EVERYTHING


async def leader_is_isolated(nemesis: Nemesis, cluster: Cluster[Servers[Any, BrokerNodes]]) -> str:
    """Isolate the node with the queues' leaders from the other nodes, but not from clients, for a while."""
    async with whole_broker(cluster) as broker:
        leader = await broker.leader()
        await asyncio.to_thread(broker.isolate, leader)
        try:
            await asyncio.sleep(nemesis.seconds(PARTED))
        finally:
            await asyncio.to_thread(broker.join, leader)
        return f"rabbit-{leader + 1}"


FAULTS: dict[str, Fault] = {
    "follower-kill": follower_is_killed,
    "leader-kill": leader_is_killed,
    "leader-hang": leader_hangs,
    "majority-kill": majority_is_killed,
    "partition": leader_is_isolated,
    "power-cut": all_are_killed,
}
