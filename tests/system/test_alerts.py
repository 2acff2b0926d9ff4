"""An outage fires its own alert and no other, as judged by a real Prometheus."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import pytest
import yaml

from dev.backend import ROOT
from tests.support.harness import eventually
from tests.support.proxy import free_port
from tests.support.stack import Load, Stack
from tests.support.wrong_clocks import HOUR, SettableClock, needs_libfaketime
from tests.system.servers import Servers

PROMETHEUS = shutil.which("prometheus")
FILES = ROOT / "observability"
SHORTER = {"1m": "3s", "2m": "8s", "3m": "8s", "5m": "10s", "10m": "20s", "30s": "1s"}
"""The durations of alerts in this test, which checks everything every second."""
TIMES = re.compile(r"(?<=for: )\d+m|(?<=\[)\d+m|(?<=:)30s(?=])")
LONG_SECONDS = 15
"""Longer than the longest delay of an alert."""

pytestmark = [
    pytest.mark.needs_docker,
    pytest.mark.skipif(not PROMETHEUS, reason="Prometheus is not installed"),
]


class Watched:
    """A stack under load, and a Prometheus that watches it."""

    def __init__(self, servers: Servers, stack: Stack, clock: SettableClock, api: httpx.AsyncClient) -> None:
        self.servers = servers
        self.stack = stack
        self.clock = clock
        self._api = api

    async def firing(self) -> set[str]:
        """The alerts that fire now."""
        alerts = (await self._get("/api/v1/alerts"))["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def scraped(self) -> set[tuple[str, str]]:
        """The jobs and their health."""
        targets = (await self._get("/api/v1/targets"))["activeTargets"]
        return {(target["labels"]["job"], target["health"]) for target in targets}

    async def _get(self, path: str) -> dict[str, Any]:
        response = (await self._api.get(path)).raise_for_status()  # 503 while Prometheus starts
        return dict(response.json()["data"])


def configured(folder: Path, ports: dict[str, int]) -> Path:
    """The configuration with these ports instead of names, and with shorter intervals."""
    configuration: dict[str, Any] = yaml.safe_load((FILES / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in configuration["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name'].removesuffix('-queues')]}"]}]
    rules = (FILES / "alerts.yml").read_text()
    (folder / "alerts.yml").write_text(TIMES.sub(lambda match: SHORTER[match[0]], rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    return folder / "prometheus.yml"


@contextmanager
def prometheus(configuration: Path, port: int) -> Iterator[None]:
    """Prometheus for the block."""
    command = [PROMETHEUS or "", f"--config.file={configuration}", f"--storage.tsdb.path={configuration.parent}/tsdb"]
    with (configuration.parent / "prometheus.log").open("wb") as log:
        process = Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@asynccontextmanager
async def with_metrics(stack: Stack, clock: SettableClock) -> AsyncIterator[dict[str, int]]:
    """Restarts the services with their metrics on these ports and a settable clock."""
    ports = {"gateway": free_port(), "worker": free_port()}
    await asyncio.gather(stack.gateway.stop(), stack.worker.stop())
    stack.worker = stack.worker.variant(None, INKWELL_METRICS_PORT=str(ports["worker"]), **clock.environment)
    stack.gateway = stack.gateway.variant(None, INKWELL_METRICS_PORT=str(ports["gateway"]), **clock.environment)
    try:
        await asyncio.gather(stack.worker.start(), stack.gateway.start())
        yield ports
    finally:
        await asyncio.gather(stack.gateway.kill(), stack.worker.kill())


@pytest.fixture(scope="module")
async def watched(breakable: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder, port = tmp_path_factory.mktemp("alerts"), free_port()
    async with AsyncExitStack() as exits:
        stack = await exits.enter_async_context(breakable.stack(folder, wait_seconds="0.5"))
        clock = SettableClock(folder / "clock")
        ports = await exits.enter_async_context(with_metrics(stack, clock))
        exits.enter_context(prometheus(configured(folder, ports | {"rabbitmq": breakable.broker_metrics_port}), port))
        api = await exits.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10))
        await exits.enter_async_context(Load(stack.client).running(clients=2))
        watched = Watched(breakable, stack, clock, api)
        await eventually(lambda: all_up(watched), every_seconds=0.5)
        yield watched


async def all_up(watched: Watched) -> bool:
    try:
        scraped = await watched.scraped()
    except httpx.HTTPError:
        return False
    return scraped == {(job, "up") for job in ("gateway", "worker", "rabbitmq", "rabbitmq-queues")}


async def nothing_fires(watched: Watched) -> bool:
    return not await watched.firing()


async def stop_postgres(watched: Watched) -> None:
    await asyncio.to_thread(watched.servers.postgres.get_wrapped_container().stop, timeout=10)


async def start_postgres(watched: Watched) -> None:
    await asyncio.to_thread(watched.servers.postgres.get_wrapped_container().start)


async def stop_broker(watched: Watched) -> None:
    await asyncio.to_thread(watched.servers.rabbitmq.get_wrapped_container().stop, timeout=20)


async def start_broker(watched: Watched) -> None:
    await asyncio.to_thread(watched.servers.rabbitmq.get_wrapped_container().start)


async def stop_worker(watched: Watched) -> None:
    await watched.stack.worker.stop()


async def start_worker(watched: Watched) -> None:
    await watched.stack.worker.start()


async def stop_gateway(watched: Watched) -> None:
    await watched.stack.gateway.stop()


async def start_gateway(watched: Watched) -> None:
    await watched.stack.gateway.start()


async def set_clock(watched: Watched) -> None:
    watched.clock.set(HOUR)


async def put_clock_right(watched: Watched) -> None:
    watched.clock.set(0)


BUSY = "InkwellEventLoopLag"
"""Expected while other tests use the processors."""
Step = Callable[[Watched], Awaitable[None]]


@pytest.mark.parametrize(
    ("stop", "start", "alert"),
    [
        (stop_worker, start_worker, "InkwellWorkerDown"),
        (stop_postgres, start_postgres, "InkwellPostgresDown"),
        pytest.param(stop_broker, start_broker, "InkwellBrokerDown", marks=pytest.mark.long),
        pytest.param(set_clock, put_clock_right, "InkwellClockWrong", marks=[needs_libfaketime, pytest.mark.long]),
        pytest.param(stop_gateway, start_gateway, "InkwellGatewayDown", marks=pytest.mark.long),
    ],
)
async def test_outage_turns_its_own_alert_true_and_no_other(
    watched: Watched, stop: Step, start: Step, alert: str
) -> None:
    await eventually(lambda: nothing_fires(watched), within_seconds=60)
    fired: set[str] = set()

    await stop(watched)
    for _ in range(LONG_SECONDS):
        await asyncio.sleep(1)
        fired |= await watched.firing()
    await start(watched)
    await eventually(lambda: nothing_fires(watched), within_seconds=60)

    assert fired - {BUSY} == {alert}
