"""A primary and a synchronous standby, which is promoted whenever the primary is lost, and their faults.

The services name both hosts. Each of them has a proxy to each, so an address can also be moved to the new primary.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from dev.containers import image, postgres_server
from tests.faults.cluster import Cluster
from tests.faults.nemesis import SHORT, Fault, Nemesis
from tests.faults.servers import Server, Servers
from tests.support.harness import eventually
from tests.support.proxy import free_port

NOTICED_SECONDS = (2.0, 5.0)
"""How long it takes until the monitor of the primary promotes the standby."""
# The server that fills the data listens on its socket only.
ALLOW_REPLICATION = """
until pg_isready --quiet --host 127.0.0.1; do sleep 0.1; done
echo 'host replication all all scram-sha-256' >> $PGDATA/pg_hba.conf
"""
# A node that was promoted keeps its data when its container is started again.
FOLLOW = """
if [ ! -e /followed ]; then
  until pg_basebackup -h "$LEADER" -U inkwell -D "$PGDATA" -R -X stream -c fast; do rm -rf "$PGDATA"; sleep 0.2; done
  chown -R postgres "$PGDATA"
  chmod 700 "$PGDATA"
  touch /followed
fi
exec docker-entrypoint.sh postgres -c wal_keep_size=512MB
"""


@dataclass
class PostgresPair(Server):
    """Two Postgres nodes, one of which replicates the other; `primary` is the number of the primary."""

    network: Network
    ports: tuple[int, int]
    nodes: list[DockerContainer] = field(default_factory=list)
    primary: int = 0
    has_standby: bool = False

    @property
    def node(self) -> DockerContainer:
        return self.nodes[self.primary]

    @property
    def standby(self) -> int:
        return 1 - self.primary

    def psql(self, node: int, statement: str) -> str:
        """Return the output of the statement on one of the two."""
        command = ["psql", "-h", "127.0.0.1", "-U", "inkwell", "-At", "-c", statement]
        result = self.nodes[node].exec(command)
        assert result.exit_code == 0, result.output
        return str(result.output.decode()).strip()

    def start_primary(self) -> None:
        """Start the first node, on empty data."""
        server = postgres_server().with_command(["postgres", "-c", "wal_keep_size=512MB"])
        self.nodes.append(self._start(server, 0))
        result = self.nodes[0].exec(["sh", "-c", ALLOW_REPLICATION])
        assert result.exit_code == 0, result.output
        self.psql(0, "select pg_reload_conf()")

    def follow(self) -> None:
        """Rebuild the other node as a synchronous standby of the primary."""
        if len(self.nodes) > 1:
            self.nodes[self.standby].stop()
        server = (
            DockerContainer(image("POSTGRES_IMAGE"))
            .with_env("LEADER", self._alias(self.primary))
            .with_env("PGPASSWORD", "inkwell")
            .with_command(["bash", "-c", FOLLOW])
            .waiting_for(LogMessageWaitStrategy("database system is ready to accept read-only connections"))
        )
        started = self._start(server, self.standby)
        self.nodes[self.standby : self.standby + 1] = [started]
        self.psql(self.primary, "alter system set synchronous_standby_names = '*'")
        self.psql(self.primary, "select pg_reload_conf()")
        self.has_standby = True

    def promote(self) -> None:
        """Promote the standby, which waits for no standby of its own until it has one."""
        self.psql(self.standby, "alter system reset synchronous_standby_names")
        assert self.psql(self.standby, "select pg_promote()") == "t"
        self.primary, self.has_standby = self.standby, False

    def _start(self, server: DockerContainer, node: int) -> DockerContainer:
        server.with_network(self.network).with_network_aliases(self._alias(node))
        return server.with_bind_ports(5432, self.ports[node]).start()

    def _alias(self, node: int) -> str:
        return f"postgres-{node + 1}"

    async def repair(self) -> None:
        """Replace the lost node by a new standby, without which the next fault would lose commits."""
        if not self.has_standby:
            await asyncio.to_thread(self.follow)
        await eventually(self._is_synchronous, within_seconds=60)

    async def _is_synchronous(self) -> bool:
        states = await asyncio.to_thread(self.psql, self.primary, "select sync_state from pg_stat_replication")
        return states == "sync"

    async def do_without_a_standby(self) -> None:
        """Let commits wait for no standby, as the monitor of the primary does once the standby is lost."""
        await asyncio.to_thread(self.psql, self.primary, "alter system reset synchronous_standby_names")
        await asyncio.to_thread(self.psql, self.primary, "select pg_reload_conf()")
        self.has_standby = False


@asynccontextmanager
async def postgres_pair() -> AsyncIterator[PostgresPair]:
    """Both nodes for the block."""
    ports = free_port(), free_port()
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    url = f"postgresql://inkwell:inkwell@{hosts}/inkwell?target_session_attrs=primary"
    with Network() as network:
        pair = PostgresPair(url, network, ports)
        try:
            await asyncio.to_thread(pair.start_primary)
            await pair.repair()
            yield pair
        finally:
            for node in pair.nodes:
                node.stop()


@asynccontextmanager
async def replaced_primary(
    nemesis: Nemesis, cluster: Cluster[Servers[PostgresPair, Any]], how: Literal["kill", "pause"]
) -> AsyncIterator[int]:
    """Lose the primary and promote its standby after a while; returns the number of the lost node."""
    pair = cluster.servers.postgres
    async with pair.lock:
        await pair.repair()  # another fault of the round may have taken the standby
        for node in (0, 1):
            redirect(cluster, node, node)
        lost = pair.primary
        await pair.act(how)
        await asyncio.sleep(nemesis.seconds(NOTICED_SECONDS))
        await asyncio.to_thread(pair.promote)
        yield lost


async def primary_is_killed(nemesis: Nemesis, cluster: Cluster[Servers[PostgresPair, Any]]) -> str:
    """Kill the primary."""
    async with replaced_primary(nemesis, cluster, "kill") as lost:
        return f"postgres-{lost + 1}"


async def primary_hangs(nemesis: Nemesis, cluster: Cluster[Servers[PostgresPair, Any]]) -> str:
    """Pause the primary: it accepts connections but never answers."""
    async with replaced_primary(nemesis, cluster, "pause") as lost:
        return f"postgres-{lost + 1}"


async def address_moves(nemesis: Nemesis, cluster: Cluster[Servers[PostgresPair, Any]]) -> str:
    """Pause the primary, give its address to the standby, and then resume the former primary.

    Open connections still lead to the former primary. Its commits wait for its standby, which no longer follows it.
    """
    pair = cluster.servers.postgres
    async with replaced_primary(nemesis, cluster, "pause") as lost:
        redirect(cluster, lost, pair.primary)
        await asyncio.to_thread(pair.nodes[lost].get_wrapped_container().unpause)
        await asyncio.sleep(nemesis.seconds(SHORT))
        return f"postgres-{lost + 1}"


async def standby_is_killed(nemesis: Nemesis, cluster: Cluster[Servers[PostgresPair, Any]]) -> str:
    """Kill the standby: commits wait for it until the primary is told to do without."""
    pair = cluster.servers.postgres
    async with pair.lock:
        await pair.repair()
        await asyncio.to_thread(pair.nodes[pair.standby].get_wrapped_container().kill)
        try:
            await asyncio.sleep(nemesis.seconds(NOTICED_SECONDS))
        finally:
            await pair.do_without_a_standby()
        return f"postgres-{pair.standby + 1}"


def redirect(cluster: Cluster[Servers[PostgresPair, Any]], address: int, node: int) -> None:
    """Send new connections to the address of one node to another node."""
    for service in cluster.services:
        link = service.links["database-2" if address else "database"]
        link.lead_to("127.0.0.1", cluster.servers.postgres.ports[node])


FAULTS: dict[str, Fault] = {
    "primary-kill": primary_is_killed,
    "primary-hang": primary_hangs,
    "address-moves": address_moves,
    "standby-kill": standby_is_killed,
}
