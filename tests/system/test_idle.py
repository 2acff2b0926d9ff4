"""The cost of an idle deployment, and how soon its health checks report a process that hangs."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from tests.support.harness import eventually
from tests.system.deployment import Deployment, deployed

MEASURED_SECONDS = 60
CORE_SHARE = 0.05
START_SECONDS = 30
"""Of all containers together; most of it is used by the services themselves."""
SERVICES = {"postgres", "rabbitmq", "gateway", "worker"}
PROCESSES = {"rabbitmq": ("rabbitmq", "beam.smp"), "gateway": ("10001", "python"), "worker": ("10001", "python")}
"""The owners and names of the processes. Postgres is process 1, which only the engine can stop."""
SIGNAL = """for each in /proc/[0-9]*; do
  if [ "$(cat $each/comm 2>/dev/null)" = {name} ]; then kill -{signal} ${{each#/proc/}}; fi
done"""

pytestmark = [pytest.mark.needs_docker, pytest.mark.long]


@pytest.fixture(scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path_factory.mktemp("deployment")) as deployment:
        await deployment.up()
        yield deployment


@pytest.fixture
def containers(deployment: Deployment) -> dict[str, Container]:
    """The running containers by service."""
    label = f"com.docker.compose.project={deployment.environment['COMPOSE_PROJECT_NAME']}"
    found = docker.from_env().containers.list(filters={"label": label})
    return {each.labels["com.docker.compose.service"]: each for each in found}


async def test_stack_is_healthy_within_seconds(deployment: Deployment) -> None:
    await deployment.run("docker compose down")
    started = time.monotonic()
    await deployment.run("docker compose up -d --wait")

    assert time.monotonic() - started < START_SECONDS


async def test_idle_stack_takes_a_twentieth_of_a_core_at_most(containers: dict[str, Container]) -> None:
    assert containers.keys() == SERVICES
    await asyncio.sleep(10)  # starting it still uses processor time
    before = used_seconds(containers)
    await asyncio.sleep(MEASURED_SECONDS)
    after = used_seconds(containers)
    shares = {service: (after[service] - before[service]) / MEASURED_SECONDS for service in containers}

    assert sum(shares.values()) <= CORE_SHARE, shares


async def test_what_hangs_is_unhealthy_within_a_minute_and_healthy_again_within_seconds(
    deployment: Deployment, containers: dict[str, Container]
) -> None:
    await signal_all(deployment, "STOP")
    await until_all_are("unhealthy", containers, within_seconds=60)

    await signal_all(deployment, "CONT")
    await until_all_are("healthy", containers, within_seconds=30)


def used_seconds(containers: dict[str, Container]) -> dict[str, float]:
    """The processor time that each container has used so far."""
    stats: dict[str, Any] = {service: each.stats(stream=False) for service, each in containers.items()}
    return {service: each["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9 for service, each in stats.items()}


async def signal_all(deployment: Deployment, signal: str) -> None:
    """Sends a signal to the processes of the services."""
    await deployment.run(f"docker compose kill --signal={signal} postgres")
    for service, (user, name) in PROCESSES.items():
        script = SIGNAL.format(name=name, signal=signal)
        await deployment.run(f"docker compose exec -T --user {user} {service} sh -c '{script}'")


async def until_all_are(status: str, containers: dict[str, Container], within_seconds: float) -> None:
    """Returns when the engine reports this status for every container."""
    statuses: dict[str, str] = {}

    async def all_are() -> bool:
        for service, each in containers.items():
            each.reload()
            statuses[service] = each.attrs["State"]["Health"]["Status"]
        return set(statuses.values()) == {status}

    try:
        await eventually(all_are, within_seconds=within_seconds, every_seconds=0.5)
    except TimeoutError:
        raise AssertionError(statuses) from None
