"""`make dev` runs both services from the source."""

import asyncio
import os
import signal
import sys

import httpx

from dev.backend import ROOT, Services
from tests.support.harness import eventually
from tests.support.proxy import free_port

STOP_SECONDS = 60


async def test_services_run_from_the_source_until_ctrl_c_and_nothing_is_left(
    servers: Services, database_url: str, queue_prefix: str
) -> None:
    ports = {"INKWELL_PORT": free_port(), "INKWELL_WORKER_HEALTH_PORT": free_port()}
    urls = {"INKWELL_DATABASE_URL": database_url, "INKWELL_BROKER_URL": servers.broker_url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dev", "dev"),
        env=os.environ
        | urls
        | {"INKWELL_QUEUE_PREFIX": queue_prefix}
        | {name: str(port) for name, port in ports.items()},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout
    output = bytearray()
    reading = asyncio.create_task(collect(process.stdout, output))
    try:
        await eventually(lambda: are_ready(*ports.values()), within_seconds=60)
        await eventually(lambda: contains(output, b"consuming"), within_seconds=10)  # `tail` opens the file later
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        async with asyncio.timeout(STOP_SECONDS):
            await reading
            await process.wait()

    assert process.returncode == 0, output.decode()
    assert b"Traceback" not in output
    assert not await is_ready(ports["INKWELL_PORT"])
    assert not await is_ready(ports["INKWELL_WORKER_HEALTH_PORT"])


async def collect(stream: asyncio.StreamReader, output: bytearray) -> None:
    while part := await stream.read(65_536):
        output += part


async def contains(output: bytearray, text: bytes) -> bool:
    return text in output


async def are_ready(*ports: int) -> bool:
    return all([await is_ready(port) for port in ports])


async def is_ready(port: int) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(f"http://127.0.0.1:{port}/health/ready")).is_success
        except httpx.TransportError:
            return False
