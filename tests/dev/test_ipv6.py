"""A RabbitMQ whose host name resolves to IPv6 only, as in a cluster without IPv4."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import docker
import pytest
from docker.errors import APIError
from docker.models.containers import Container
from docker.types import IPAMConfig, IPAMPool

from dev.backend import ROOT
from dev.containers import IMAGES
from dev.definitions import ADMINISTRATOR, definitions_for_tests
from tests.support.harness import eventually

START = """
mkdir -p /etc/rabbitmq/inkwell
echo "$DEFINITIONS" > /etc/rabbitmq/inkwell/definitions.json
sh /rabbitmq-env.sh > /etc/rabbitmq/inkwell/rabbitmq-env.conf
exec docker-entrypoint.sh rabbitmq-server
"""
"""As Compose starts it."""
FILES = {
    "dev/rabbitmq-env.sh": "/rabbitmq-env.sh",
    "dev/rabbitmq.conf": "/etc/rabbitmq/conf.d/inkwell.conf",
}

pytestmark = pytest.mark.needs_docker


@pytest.fixture
def engine() -> Iterator[docker.DockerClient]:
    engine = docker.from_env()
    yield engine
    engine.close()


@pytest.fixture
def address() -> str:
    return f"fd00:{secrets.token_hex(2)}:{secrets.token_hex(2)}::5"


@pytest.fixture
def network(engine: docker.DockerClient, address: str) -> Iterator[str]:
    name = f"inkwell-test-{secrets.token_hex(4)}"
    pool = IPAMPool(subnet=f"{address.removesuffix('5')}/64")
    try:
        made = engine.networks.create(name, enable_ipv6=True, ipam=IPAMConfig(pool_configs=[pool]))
    except APIError as error:
        pytest.skip(f"the engine makes no network with IPv6: {error}")
    yield name
    made.remove()


@pytest.fixture
def rabbitmq(engine: docker.DockerClient, network: str, address: str, tmp_path: Path) -> Iterator[Container]:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n::1 localhost\n{address} rabbitmq\n")
    files = {str(hosts): "/etc/hosts"} | {str(ROOT / file): place for file, place in FILES.items()}
    endpoint = engine.api.create_endpoint_config(ipv6_address=address)
    container = engine.containers.run(
        IMAGES["RABBITMQ_IMAGE"],
        ["sh", "-c", START],
        hostname="rabbitmq",
        environment={
            "RABBITMQ_CONF_ENV_FILE": "/etc/rabbitmq/inkwell/rabbitmq-env.conf",
            "DEFINITIONS": definitions_for_tests(),
        },
        volumes={file: {"bind": place, "mode": "ro"} for file, place in files.items()},
        network=network,
        networking_config={network: endpoint},
        detach=True,
    )
    yield container
    container.remove(force=True, v=True)


async def test_rabbitmq_and_its_tools_work_on_ipv6_alone(rabbitmq: Container, address: str) -> None:
    async def answers() -> bool:
        try:
            async with await aio_pika.connect(f"amqp://{ADMINISTRATOR}:{ADMINISTRATOR}@[{address}]:5672/"):
                return True
        except (OSError, aio_pika.exceptions.AMQPConnectionError):
            return False

    assert await eventually(answers, within_seconds=60, every_seconds=0.5), rabbitmq.logs().decode()
    listed = rabbitmq.exec_run(["rabbitmqctl", "--quiet", "list_users"])
    assert (listed.exit_code, ADMINISTRATOR in str(listed.output)) == (0, True), listed.output
