"""A Postgres and a RabbitMQ to develop and test with; where they come from is decided here and nowhere else.

The URLs of the environment, where both are given; else containers that live as long as they are needed.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

POSTGRES_IMAGE = "postgres:17"
RABBITMQ_IMAGE = "rabbitmq:4-management"


@dataclass(frozen=True, slots=True)
class Services:
    """Where Postgres and RabbitMQ are; the database role may create databases, tables and roles."""

    database_url: str
    broker_url: str


def from_environment() -> Services | None:
    """The services that INKWELL_DATABASE_URL and INKWELL_BROKER_URL name, where both are set."""
    database_url, broker_url = os.environ.get("INKWELL_DATABASE_URL"), os.environ.get("INKWELL_BROKER_URL")
    return Services(database_url, broker_url) if database_url and broker_url else None


@contextmanager
def services() -> Iterator[Services]:
    """Services for the block: the environment's, or containers that are removed at its end."""
    if given := from_environment():
        yield given
        return
    with ExitStack() as stack:
        postgres = stack.enter_context(_postgres())
        rabbitmq = stack.enter_context(_rabbitmq())
        yield Services(
            f"postgresql://inkwell:inkwell@{_address(postgres, 5432)}/inkwell",
            f"amqp://guest:guest@{_address(rabbitmq, 5672)}/",
        )


def _postgres() -> DockerContainer:
    ready = LogMessageWaitStrategy("database system is ready to accept connections.*", times=2)
    return (
        DockerContainer(POSTGRES_IMAGE)
        .with_env("POSTGRES_USER", "inkwell")
        .with_env("POSTGRES_PASSWORD", "inkwell")
        .with_exposed_ports(5432)
        .waiting_for(ready)
    )


def _rabbitmq() -> DockerContainer:
    return (
        DockerContainer(RABBITMQ_IMAGE)
        .with_kwargs(hostname="rabbitmq")
        .with_exposed_ports(5672)
        .waiting_for(LogMessageWaitStrategy("Server startup complete"))
    )


def _address(container: DockerContainer, port: int) -> str:
    return f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"
