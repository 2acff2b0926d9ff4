"""The addresses on which the services listen, by the host in the settings: IPv4, IPv6, or both."""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from dev.backend import DEVELOPMENT_KEY, ROOT
from shared.listening import open_sockets, single_socket_host
from tests.support.harness import eventually
from tests.support.proxy import free_port
from tests.support.stack import Process

IPV4, IPV6 = "127.0.0.1", "::1"
SETTINGS = {
    "INKWELL_ENVIRONMENT": "development",
    "INKWELL_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
    "INKWELL_BROKER_URL": "amqp://nobody@127.0.0.1:1/",
    "INKWELL_SIGNING_KEYS": DEVELOPMENT_KEY,
    "INKWELL_FINGERPRINT_KEY": DEVELOPMENT_KEY,
}
ADDRESSES = {
    "::": {IPV4, IPV6},
    "0.0.0.0": {IPV4},  # noqa: S104
    IPV4: {IPV4},
    IPV6: {IPV6},
}


def has_ipv6() -> bool:
    try:
        with socket.create_server((IPV6, 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
HOSTS = [pytest.param(host, marks=needs_ipv6 if ":" in host else ()) for host in ADDRESSES]


@asynccontextmanager
async def listening(service: str, folder: Path, **settings: str) -> AsyncIterator[Process]:
    """A service without its servers during the block; probes and metrics do not need them."""
    process = Process([sys.executable, "-m", service], SETTINGS | settings, folder / "log", ready_url="")
    await process.start(ready=False)
    try:
        yield process
    finally:
        await process.stop()


async def answers_at(port: int, path: str) -> set[str]:
    """The loopback addresses at which a port answers 200."""
    async with httpx.AsyncClient(timeout=5) as client:
        return {each for each in (IPV4, IPV6) if await is_well(client, each, port, path)}


async def until_answered_at(port: int, path: str, addresses: set[str]) -> None:
    """Returns when it answers at exactly these loopback addresses; the sockets open one after the other."""

    async def is_so() -> bool:
        return await answers_at(port, path) == addresses

    await eventually(is_so)


async def is_well(client: httpx.AsyncClient, address: str, port: int, path: str) -> bool:
    host = f"[{address}]" if ":" in address else address
    try:
        return (await client.get(f"http://{host}:{port}{path}")).status_code == 200
    except httpx.TransportError:
        return False


async def probe(**settings: str) -> int | None:
    """The exit code of the image's probe."""
    command = (sys.executable, "-I", "-S", str(ROOT / "shared/probe.py"))
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | settings)
    return await process.wait()


@pytest.mark.parametrize("host", HOSTS)
async def test_gateway_and_its_metrics_listen_at_the_configured_host_and_the_probe_finds_it(
    host: str, tmp_path: Path
) -> None:
    port, metrics_port = free_port(), free_port()
    settings = {"INKWELL_HOST": host, "INKWELL_PORT": str(port), "INKWELL_WORKER_HEALTH_PORT": str(free_port())}
    metrics = {"INKWELL_METRICS_HOST": host, "INKWELL_METRICS_PORT": str(metrics_port)}
    async with listening("gateway", tmp_path, **settings, **metrics):
        await until_answered_at(port, "/health/ready", ADDRESSES[host])
        await until_answered_at(metrics_port, "/metrics", ADDRESSES[host])
        assert await probe(**settings) == 0


@pytest.mark.parametrize("host", [pytest.param("::", marks=needs_ipv6), IPV4])
async def test_probes_of_the_worker_listen_at_the_configured_host(host: str, tmp_path: Path) -> None:
    port = free_port()
    settings = {"INKWELL_WORKER_HEALTH_HOST": host, "INKWELL_WORKER_HEALTH_PORT": str(port)}
    async with listening("worker", tmp_path, **settings):
        await until_answered_at(port, "/health/live", ADDRESSES[host])


async def test_gateway_listens_on_a_hosts_name(tmp_path: Path) -> None:
    port = free_port()
    settings = {"INKWELL_HOST": "localhost", "INKWELL_PORT": str(port)}
    async with listening("gateway", tmp_path, **settings):
        found = socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)
        await until_answered_at(port, "/health/ready", {str(each[4][0]) for each in found})
        assert await probe(**settings) == 0


def test_machine_without_ipv6_is_listened_on_with_ipv4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = socket.AF_INET, *arguments: int, **options: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", without_ipv6)

    [opened] = open_sockets("::", 0, "INKWELL_PORT")
    with opened:
        assert opened.family == socket.AF_INET
    assert single_socket_host("::") == "0.0.0.0"  # noqa: S104


@needs_ipv6
def test_clients_of_ipv4_keep_their_addresses() -> None:
    for each in open_sockets("::", 0, "INKWELL_PORT"):
        with each, socket.create_connection((IPV4 if each.family == socket.AF_INET else IPV6, each.getsockname()[1])):
            client, address = each.accept()
            client.close()
            assert address[0] == (IPV4 if each.family == socket.AF_INET else IPV6)


@pytest.mark.parametrize(
    ("service", "setting"), [("gateway", "INKWELL_PORT"), ("worker", "INKWELL_WORKER_HEALTH_PORT")]
)
async def test_port_that_is_taken_is_named(service: str, setting: str, tmp_path: Path) -> None:
    with socket.create_server((IPV4, 0)) as taken:
        port = taken.getsockname()[1]
        async with listening(service, tmp_path, **{setting: str(port)}) as process:
            assert await eventually(lambda: ended(process))

    assert await process.stop() == 2
    assert f"wrong setting: {setting}: cannot listen on 127.0.0.1:{port} (" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
async def test_host_that_is_not_here_is_named(host: str, tmp_path: Path) -> None:
    async with listening("gateway", tmp_path, INKWELL_HOST=host, INKWELL_PORT="8000") as process:
        assert await eventually(lambda: ended(process))

    assert await process.stop() == 2
    assert f"cannot listen on {host}:8000" in (tmp_path / "log").read_text()


async def ended(process: Process) -> bool:
    return not process.running
