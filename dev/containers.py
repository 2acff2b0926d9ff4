"""Postgres, RabbitMQ and Inkwell in containers: Testcontainers for a block, Compose for the stack."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NoReturn

from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from dev.backend import ROOT, Services, UnavailableError, require_free
from dev.definitions import ADMINISTRATOR, definitions_for_tests
from shared.contracts import LARGEST_MESSAGE_BYTES

IMAGES = {"POSTGRES_IMAGE": "postgres:18", "RABBITMQ_IMAGE": "rabbitmq:4.3-management"}
"""Images of the test servers; an environment variable of the same name overrides one. Compose names its own."""
COMPOSE = ["docker", "compose", "--project-directory", str(ROOT)]
ENGINE_TIMEOUT_SECONDS = 15
WITH_DEFINITIONS = """
echo "$DEFINITIONS" > /etc/rabbitmq/definitions.json
echo load_definitions = /etc/rabbitmq/definitions.json > /etc/rabbitmq/conf.d/definitions.conf
echo max_message_size = "$MAX_MESSAGE_SIZE" > /etc/rabbitmq/conf.d/message-size.conf
exec docker-entrypoint.sh rabbitmq-server
"""


def no_engine() -> str | None:
    """Why containers are not available: no Docker engine with Compose answers."""
    try:
        subprocess.run(["docker", "compose", "ls"], check=True, capture_output=True, timeout=ENGINE_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return "no Docker engine with Compose answers"
    return None


@cache
def no_servers() -> str | None:
    """Why servers in containers are not available: no engine, or images that cannot be pulled."""
    return no_engine() or next(filter(None, (_no_image(image(name)) for name in IMAGES)), None)


def no_stack(given: Services | None) -> str | None:
    """Why Compose cannot start the stack: the reasons above, or an image that cannot be built."""
    if reason := no_engine() if given else no_servers():
        return reason
    return "Docker cannot build Inkwell's image" if subprocess.call([*COMPOSE, "build"]) else None


def image(name: str) -> str:
    """The image for `POSTGRES_IMAGE` or `RABBITMQ_IMAGE`."""
    return os.environ.get(name) or IMAGES[name]


def _no_image(tag: str) -> str | None:
    if subprocess.run(["docker", "image", "inspect", tag], check=False, capture_output=True).returncode == 0:
        return None
    return f"Docker cannot get the image {tag}" if subprocess.call(["docker", "pull", tag]) else None


def prepare() -> None:
    """Do nothing: `no_servers` has pulled the images."""


@contextmanager
def servers() -> Iterator[Services]:
    """Containers for the block."""
    with postgres_server().with_exposed_ports(5432) as postgres, rabbitmq_server().with_exposed_ports(5672) as rabbitmq:
        yield Services(
            f"postgresql://inkwell:inkwell@{_address(postgres, 5432)}/inkwell",
            f"amqp://{ADMINISTRATOR}:{ADMINISTRATOR}@{_address(rabbitmq, 5672)}/",
            has_broker_users=True,
        )


def postgres_server() -> DockerContainer:
    """A Postgres whose superuser is `inkwell` with the same password."""
    ready = LogMessageWaitStrategy("database system is ready to accept connections.*", times=2)
    return (
        DockerContainer(image("POSTGRES_IMAGE"))
        .with_env("POSTGRES_USER", "inkwell")
        .with_env("POSTGRES_PASSWORD", "inkwell")
        .waiting_for(ready)
    )


def rabbitmq_server() -> DockerContainer:
    """A RabbitMQ with Inkwell's users and an administrator."""
    return (
        DockerContainer(image("RABBITMQ_IMAGE"))
        .with_kwargs(hostname="rabbitmq")
        .with_env("DEFINITIONS", definitions_for_tests())
        .with_env("MAX_MESSAGE_SIZE", str(LARGEST_MESSAGE_BYTES))
        .with_command(["sh", "-c", WITH_DEFINITIONS])
        .waiting_for(LogMessageWaitStrategy("Server startup complete"))
    )


def _address(container: DockerContainer, port: int) -> str:
    return f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"


def up(given: Services | None) -> str:
    """Start the stack; returns the gateway's port once every container is healthy."""
    if not _running("gateway"):
        require_free(_gateway_port())
    if given:
        _compose("run", "--build", "--rm", "--no-deps", "migrate")
        _compose("up", "-d", "--wait", "--no-deps", "gateway", "worker")
    else:
        _compose("up", "--build", "-d", "--wait")
    published = subprocess.check_output([*COMPOSE, "port", "gateway", "8000"], text=True)
    return published.strip().rpartition(":")[2]


def _running(service: str) -> bool:
    return bool(subprocess.check_output([*COMPOSE, "ps", "--quiet", service]))


def _gateway_port() -> str:
    configuration = json.loads(subprocess.check_output([*COMPOSE, "config", "--format", "json"]))
    return str(configuration["services"]["gateway"]["ports"][0]["published"])


def down() -> None:
    """Stop the stack; the data stay in its volumes."""
    _compose("down")
    print("stopped; the data are in Docker's volumes, until `docker compose down --volumes`")


def stop(service: str) -> None:
    """Stop one service of the stack."""
    _compose("stop", service)


def start(service: str) -> None:
    """Start it again."""
    _compose("start", service)


def run(_given: Services | None, service: str, *arguments: str) -> int:
    """Run a tool in the running container of a service; returns the exit code."""
    terminal = [] if sys.stdin.isatty() else ["--no-TTY"]
    return subprocess.call([*COMPOSE, "exec", *terminal, service, "python", "-m", service, *arguments])


def logs() -> NoReturn:
    """Follows the stack's logs."""
    os.execvp("docker", [*COMPOSE, "logs", "--follow", "--tail=100"])  # noqa: S606 - Ctrl-C is Docker's


def _compose(*arguments: str) -> None:
    if subprocess.call([*COMPOSE, *arguments]):
        subprocess.call([*COMPOSE, "logs", "--tail=3"])
        raise UnavailableError(f"`docker compose {arguments[0]}` failed; the end of each log is above")
