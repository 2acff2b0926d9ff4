"""One of a URL's hosts goes silent: open connections hang, and new ones are accepted but never answered."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import httpx
import pytest
from yarl import URL

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from tests.support.proxy import Proxy, proxy_to
from worker.settings import WorkerSettings

RECOVERY_SECONDS = 30.0
SettingsT = TypeVar("SettingsT", GatewaySettings, WorkerSettings)


@asynccontextmanager
async def two_hosts(name: str, *settings: Any) -> AsyncIterator[tuple[list[Proxy], list[Any]]]:
    """Settings with two hosts in a URL that lead to the same server; the second refuses connections until started."""
    async with AsyncExitStack() as exits:
        target = URL(str(getattr(settings[0], name).get_secret_value()))
        proxies = [await exits.enter_async_context(proxy_to(str(target.host), target.port or 0)) for _ in range(2)]
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
        await proxies[1].cut()
        yield proxies, [with_hosts(each, name, hosts) for each in settings]


def with_hosts(settings: SettingsT, name: str, hosts: str) -> SettingsT:
    """The settings with other hosts in a URL."""
    url = URL(str(getattr(settings, name).get_secret_value()))
    changed = f"{url.scheme}://{url.user}:{url.password}@{hosts}{url.raw_path}"
    return type(settings).model_validate(settings.model_dump() | {name: changed})


async def is_served(client: httpx.AsyncClient) -> bool:
    """Whether a write is applied and readable."""
    written = await client.post("/notes/", json=NOTE, timeout=15)
    return written.status_code == 201 and (await client.get(written.headers["Location"])).status_code == 200


@pytest.mark.parametrize("name", ["database_url", "broker_url"])
async def test_reads_and_writes_go_on_at_the_other_host(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, name: str
) -> None:
    async with (
        two_hosts(name, gateway_settings, worker_settings) as ([silent, other], [of_gateway, of_worker]),
        harness.worker(of_worker),
        harness.gateway(of_gateway) as client,
    ):
        assert await is_served(client)
        await other.start()
        silent.freeze()

        await eventually(lambda: is_served(client), within_seconds=RECOVERY_SECONDS)
        silent.strand()  # so that stopping does not hang
