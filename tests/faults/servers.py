"""The servers of a run: what a cluster and its faults need of them, and those of a single node."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from docker.models.containers import Container
from testcontainers.core.container import DockerContainer

from dev.backend import Services
from dev.containers import postgres_server, rabbitmq_server
from dev.definitions import ADMINISTRATOR
from tests.faults.disks import Disk, small_disk
from tests.support.proxy import free_port
from tests.support.wrong_clocks import SettableClock

DATA = "/disk/data"


@dataclass
class Server:
    """A Postgres or a RabbitMQ, of one node or of several; a fault that breaks it holds its lock."""

    url: str
    """For an administrator; it names all nodes."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, kw_only=True)

    @property
    def node(self) -> DockerContainer:
        """The node that answers, or the primary."""
        raise NotImplementedError

    @property
    def container(self) -> Container:
        """Docker's own object of that node, which can be killed and started."""
        container: Container = self.node.get_wrapped_container()
        return container

    async def act(self, what: str, **options: Any) -> None:
        """Restart, kill, start, pause or unpause that node."""
        await asyncio.to_thread(getattr(self.container, what), **options)

    async def repair(self) -> None:
        """Restore what a fault has removed for good, such as a standby, once everything is served again."""


PostgresT = TypeVar("PostgresT", bound=Server)
BrokerT = TypeVar("BrokerT", bound="Broker")


@dataclass
class Broker(Server):
    """A RabbitMQ with its command-line tool."""

    async def ctl(self, *arguments: str) -> str:
        """Return the output of `rabbitmqctl`."""
        result = await asyncio.to_thread(self.node.exec, ["rabbitmqctl", "-q", *arguments])
        assert result.exit_code == 0, result.output
        return str(result.output.decode())


@dataclass
class SinglePostgres(Server):
    """One Postgres, whose disk can be filled."""

    only: DockerContainer
    disk: Disk

    @property
    def node(self) -> DockerContainer:
        return self.only


@dataclass
class SingleBroker(Broker):
    """One RabbitMQ."""

    only: DockerContainer

    @property
    def node(self) -> DockerContainer:
        return self.only


@dataclass
class Servers(Generic[PostgresT, BrokerT]):
    """A Postgres, a RabbitMQ, and a folder for the clocks of the services."""

    postgres: PostgresT
    rabbitmq: BrokerT
    folder: Path
    clocks: dict[str, SettableClock] = field(default_factory=dict)

    @property
    def services(self) -> Services:
        """The URLs for an administrator."""
        return Services(self.postgres.url, self.rabbitmq.url, has_broker_users=True)

    @property
    def postgres_lock(self) -> asyncio.Lock:
        return self.postgres.lock

    @property
    def rabbitmq_lock(self) -> asyncio.Lock:
        return self.rabbitmq.lock

    async def rabbitmqctl(self, *arguments: str) -> str:
        """Return the output of the broker's command-line tool."""
        return await self.rabbitmq.ctl(*arguments)

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment that gives the process of a service such as `worker-1` a clock of its own."""
        self.clocks[service] = SettableClock(self.folder / service)
        return self.clocks[service].environment

    async def repair(self) -> None:
        """Restore what faults have removed for good."""
        await asyncio.gather(self.postgres.repair(), self.rabbitmq.repair())


ServersT = TypeVar("ServersT", bound=Servers[Any, Any])


@contextmanager
def single_postgres() -> Iterator[SinglePostgres]:
    """A Postgres for the block; it may be killed, and keeps its port and its data."""
    port = free_port()
    url = f"postgresql://inkwell:inkwell@127.0.0.1:{port}/inkwell"
    with small_disk() as disk:
        server = postgres_server().with_env("PGDATA", DATA).with_volume_mapping(disk.volume, "/disk", "rw")
        with server.with_bind_ports(5432, port) as postgres:
            yield SinglePostgres(url, postgres, disk)


@contextmanager
def single_broker() -> Iterator[SingleBroker]:
    """A RabbitMQ with one node for the block; it may be killed, and keeps its port."""
    port = free_port()
    with rabbitmq_server().with_bind_ports(5672, port) as rabbitmq:
        yield SingleBroker(f"amqp://{ADMINISTRATOR}:{ADMINISTRATOR}@127.0.0.1:{port}/", rabbitmq)


@contextmanager
def clocks_folder() -> Iterator[Path]:
    """A folder for the clocks of the services."""
    with TemporaryDirectory(prefix="inkwell-clocks-") as folder:
        yield Path(folder)
