"""The servers of a run: the interface that a cluster needs, and the plain ones, one Postgres and one RabbitMQ."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from testcontainers.core.container import DockerContainer

from dev.backend import Services
from dev.containers import postgres_server, rabbitmq_server
from dev.definitions import ADMINISTRATOR
from tests.support.proxy import free_port


@dataclass
class Servers:
    """Servers that a fault may break; a fault holds the lock of the one that it breaks."""

    services: Services
    """Their URLs for an administrator; a URL may name several hosts."""
    rabbitmq: DockerContainer
    """A running node of the broker."""
    postgres_lock: asyncio.Lock = field(default_factory=asyncio.Lock, kw_only=True)
    rabbitmq_lock: asyncio.Lock = field(default_factory=asyncio.Lock, kw_only=True)

    def environment(self, service: str) -> dict[str, str]:  # noqa: ARG002 - other servers need the name
        """Return additional environment variables for the process of a service such as `worker-1`."""
        return {}

    async def repair(self) -> None:
        """Restore what a fault has removed for good, such as a standby, once everything is served again."""

    async def rabbitmqctl(self, *arguments: str) -> str:
        """Return the output of the broker's command-line tool."""
        result = await asyncio.to_thread(self.rabbitmq.exec, ["rabbitmqctl", "-q", *arguments])
        assert result.exit_code == 0, result.output
        return str(result.output.decode())


ServersT = TypeVar("ServersT", bound=Servers)


@dataclass
class SingleServers(Servers):
    """One server of each kind."""

    postgres: DockerContainer


@contextmanager
def broker() -> Iterator[tuple[DockerContainer, str]]:
    """A RabbitMQ with one node, and its URL for an administrator."""
    port = free_port()
    with rabbitmq_server().with_bind_ports(5672, port) as rabbitmq:
        yield rabbitmq, f"amqp://{ADMINISTRATOR}:{ADMINISTRATOR}@127.0.0.1:{port}/"


@asynccontextmanager
async def single_servers() -> AsyncIterator[SingleServers]:
    """Servers that may be killed and keep their ports."""
    postgres_port = free_port()
    with postgres_server().with_bind_ports(5432, postgres_port) as postgres, broker() as (rabbitmq, broker_url):
        database_url = f"postgresql://inkwell:inkwell@127.0.0.1:{postgres_port}/inkwell"
        yield SingleServers(Services(database_url, broker_url, has_broker_users=True), rabbitmq, postgres)
