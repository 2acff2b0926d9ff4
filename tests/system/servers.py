"""A Postgres and a RabbitMQ in containers on fixed ports, which tests may break."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from testcontainers.core.container import DockerContainer

from dev.backend import Services
from dev.containers import postgres_server, rabbitmq_server
from dev.definitions import ADMINISTRATOR
from tests.support.isolation import create_database, create_template, fresh_prefix, with_database
from tests.support.proxy import free_port
from tests.support.stack import Stack, running_stack

SMALL_DISK = "size=32m"
TEMPLATE = "inkwell_template"
"""A migrated database, which the first stack on the servers needs."""


@dataclass(frozen=True)
class Servers:
    """The two containers and their URLs for an administrator."""

    postgres: DockerContainer
    rabbitmq: DockerContainer
    services: Services
    broker_metrics_port: int

    async def psql(self, *statements: str) -> None:
        """Runs the statements, each in its own transaction."""
        connection = await asyncpg.connect(self.services.database_url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def rabbitmqctl(self, *arguments: str) -> None:
        """Runs the broker's command-line tool."""
        result = await asyncio.to_thread(self.rabbitmq.exec, ["rabbitmqctl", *arguments])
        assert result.exit_code == 0, result.output

    async def restart_postgres(self) -> None:
        """Returns when the container runs again; the server may not answer yet."""
        await asyncio.to_thread(self.postgres.get_wrapped_container().restart, timeout=10)

    async def restart_rabbitmq(self) -> None:
        """Returns when the container runs again; the server may not answer yet."""
        await asyncio.to_thread(self.rabbitmq.get_wrapped_container().restart, timeout=20)

    @asynccontextmanager
    async def stack(self, folder: Path, **settings: str) -> AsyncIterator[Stack]:
        """A stack for the block, on a new migrated database with its own queues, which are deleted after it."""
        async with fresh_prefix(self.services) as prefix, stack_on(self.services, prefix, folder, **settings) as stack:
            yield stack


@asynccontextmanager
async def stack_on(services: Services, prefix: str, folder: Path, **settings: str) -> AsyncIterator[Stack]:
    """A stack for the block, on a new migrated database, with this prefix for its queues."""
    name = prefix.replace("-", "_")
    admin = await asyncpg.connect(services.database_url)
    if not await admin.fetchval("select exists(select from pg_database where datname = $1)", TEMPLATE):
        await create_template(services, admin, TEMPLATE)
    await create_database(admin, name, TEMPLATE)
    await admin.close()
    database_url = with_database(services.database_url, name)
    async with running_stack(database_url, services, prefix, folder, **settings) as stack:
        yield stack


@contextmanager
def breakable_servers() -> Iterator[Servers]:
    """Both servers for the block."""
    postgres_port, rabbitmq_port, metrics_port = free_port(), free_port(), free_port()
    postgres = postgres_server().with_tmpfs_mount("/small", SMALL_DISK).with_bind_ports(5432, postgres_port)
    rabbitmq = rabbitmq_server().with_bind_ports(5672, rabbitmq_port).with_bind_ports(15692, metrics_port)
    with postgres, rabbitmq:
        services = Services(
            f"postgresql://inkwell:inkwell@127.0.0.1:{postgres_port}/inkwell",
            f"amqp://{ADMINISTRATOR}:{ADMINISTRATOR}@127.0.0.1:{rabbitmq_port}/",
            has_broker_users=True,
        )
        yield Servers(postgres, rabbitmq, services, metrics_port)
