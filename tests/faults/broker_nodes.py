"""The rig `broker-nodes`: three RabbitMQ nodes as one cluster, each command queue on all of them.

The services name all three. The nodes reach each other over a network of their own, from which a partition takes one.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from docker.models.containers import Container
from docker.models.networks import Network as DockerNetwork
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from dev.backend import Services
from dev.containers import image, postgres_server
from dev.definitions import ADMINISTRATOR, definitions_for_tests
from shared.contracts import LARGEST_MESSAGE_BYTES
from tests.faults.cluster import PREFIX, Cluster
from tests.faults.history import EVERYTHING
from tests.faults.nemesis import LONG, Fault, Nemesis
from tests.faults.servers import Servers
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
class BrokerNodes(Servers):
    """A Postgres, and the three nodes of a broker."""

    postgres: DockerContainer
    peers: Network
    nodes: list[DockerContainer]
    down: set[int] = field(default_factory=set)
    """The nodes that a fault has left killed."""

    async def rabbitmqctl(self, *arguments: str) -> str:
        """Return the output of the broker's command-line tool on a running node."""
        node = min({*range(NODES)} - self.down)
        result = await asyncio.to_thread(self.nodes[node].exec, ["rabbitmqctl", "-q", *arguments])
        assert result.exit_code == 0, result.output
        return str(result.output.decode())

    async def leader(self) -> int:
        """Return the node with the most leaders of command queues."""
        listed = json.loads(await self.rabbitmqctl("--formatter", "json", "list_queues", "name", "leader"))
        leaders = Counter(queue["leader"] for queue in listed if queue["name"].startswith(f"{PREFIX}.commands"))
        return int(leaders.most_common(1)[0][0].rpartition("-")[2]) - 1

    async def act(self, what: str, nodes: Iterable[int]) -> None:
        """Kill, start, pause or unpause nodes, all at once."""
        await asyncio.gather(*(asyncio.to_thread(getattr(self.container(node), what)) for node in nodes))

    def container(self, node: int) -> Container:
        """Return the container of a node."""
        container: Container = self.nodes[node].get_wrapped_container()
        return container

    def join(self, node: int) -> None:
        """Connect a node to the others."""
        docker_of(self.peers).connect(self.container(node), aliases=[f"rabbit-{node + 1}"])

    def isolate(self, node: int) -> None:
        """Disconnect a node from the others; it still serves clients."""
        docker_of(self.peers).disconnect(self.container(node))

    async def repair(self) -> None:
        """Start the killed nodes, and wait until each queue has a replica on every node again."""
        await self.act("start", self.down)
        self.down.clear()
        await eventually(self._is_whole, within_seconds=120, every_seconds=0.5)

    async def _is_whole(self) -> bool:
        try:
            listed = json.loads(await self.rabbitmqctl("--formatter", "json", "list_queues", "name", "online"))
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
    postgres_port, ports = free_port(), [free_port() for _ in range(NODES)]
    broker_url = f"amqp://{ADMINISTRATOR}:{ADMINISTRATOR}@{','.join(f'127.0.0.1:{port}' for port in ports)}/"
    database_url = f"postgresql://inkwell:inkwell@127.0.0.1:{postgres_port}/inkwell"
    services = Services(database_url, broker_url, has_broker_users=True)
    internal = Network(docker_network_kw={"internal": True})  # without a gateway, so clients' connections never use it
    with postgres_server().with_bind_ports(5432, postgres_port) as postgres, internal as peers:
        nodes = [node(number, port) for number, port in enumerate(ports, 1)]
        servers = BrokerNodes(services, nodes[0], postgres, peers, nodes)
        try:
            for number in range(NODES):
                nodes[number].start()
                servers.join(number)
            await eventually(lambda: has_formed(servers), within_seconds=120, every_seconds=0.5)
            yield servers
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


async def has_formed(servers: BrokerNodes) -> bool:
    """Whether the nodes form one cluster."""
    try:
        status: dict[str, Any] = json.loads(await servers.rabbitmqctl("cluster_status", "--formatter", "json"))
    except (AssertionError, ValueError):
        return False
    return len(status["running_nodes"]) == NODES


async def leader_is_killed(_: Nemesis, cluster: Cluster[BrokerNodes]) -> str:
    """Kill the node with the queues' leaders until everything is served again."""
    async with cluster.servers.rabbitmq_lock:
        return await stays_killed(cluster.servers, await cluster.servers.leader())


async def follower_is_killed(_: Nemesis, cluster: Cluster[BrokerNodes]) -> str:
    """Kill another node until everything is served again."""
    async with cluster.servers.rabbitmq_lock:
        return await stays_killed(cluster.servers, (await cluster.servers.leader() + 1) % NODES)


async def stays_killed(servers: BrokerNodes, node: int) -> str:
    """Kill a node, which `repair` starts again."""
    await servers.act("kill", [node])
    servers.down.add(node)
    return f"rabbit-{node + 1}"


async def leader_hangs(nemesis: Nemesis, cluster: Cluster[BrokerNodes]) -> str:
    """Pause the node with the queues' leaders for a while: it accepts connections but answers nothing."""
    async with cluster.servers.rabbitmq_lock:
        leader = await cluster.servers.leader()
        await cluster.servers.act("pause", [leader])
        await asyncio.sleep(nemesis.seconds(PARTED))
        await cluster.servers.act("unpause", [leader])
        return f"rabbit-{leader + 1}"


async def majority_is_killed(nemesis: Nemesis, cluster: Cluster[BrokerNodes]) -> str:
    """Kill two of the three nodes for a while."""
    return await killed_for_a_while(nemesis, cluster, 2)


async def all_are_killed(nemesis: Nemesis, cluster: Cluster[BrokerNodes]) -> str:
    """A power cut: kill all nodes, Postgres and all services at once, and start them again."""
    async with cluster.servers.postgres_lock:
        postgres = cluster.servers.postgres.get_wrapped_container()
        await asyncio.gather(
            asyncio.to_thread(postgres.kill),
            cluster.servers.act("kill", range(NODES)),
            *(service.process.kill() for service in cluster.services),
        )
        await asyncio.sleep(nemesis.seconds(LONG))
        await asyncio.gather(
            asyncio.to_thread(postgres.start),
            cluster.servers.act("start", range(NODES)),
            *(service.process.start(ready=False) for service in cluster.services),
        )
    return EVERYTHING


async def killed_for_a_while(nemesis: Nemesis, cluster: Cluster[BrokerNodes], number: int) -> str:
    """Kill this many nodes, and start them again."""
    async with cluster.servers.rabbitmq_lock:
        first = await cluster.servers.leader()
        nodes = [(first + each) % NODES for each in range(number)]
        await cluster.servers.act("kill", nodes)
        await asyncio.sleep(nemesis.seconds(LONG))
        await cluster.servers.act("start", nodes)
        return ", ".join(f"rabbit-{each + 1}" for each in nodes)


async def leader_is_isolated(nemesis: Nemesis, cluster: Cluster[BrokerNodes]) -> str:
    """Isolate the node with the queues' leaders from the other nodes, but not from clients, for a while."""
    async with cluster.servers.rabbitmq_lock:
        leader = await cluster.servers.leader()
        await asyncio.to_thread(cluster.servers.isolate, leader)
        await asyncio.sleep(nemesis.seconds(PARTED))
        await asyncio.to_thread(cluster.servers.join, leader)
        return f"rabbit-{leader + 1}"


FAULTS: dict[str, Fault] = {
    "follower-kill": follower_is_killed,
    "leader-kill": leader_is_killed,
    "leader-hang": leader_hangs,
    "majority-kill": majority_is_killed,
    "partition": leader_is_isolated,
    "power-cut": all_are_killed,
}
