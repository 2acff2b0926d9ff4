"""The load balancer for RabbitMQ in docs/connections.md."""

import asyncio
import re
import shutil
from pathlib import Path

import aio_pika
import httpx
import pytest
from aio_pika.exceptions import AMQPConnectionError

from dev.backend import ROOT, Services
from tests.support.harness import eventually
from tests.support.proxy import free_port

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
EXAMPLE = re.compile("```haproxy\n(.+?)```", re.DOTALL)


@pytest.mark.skipif(not HAPROXY, reason="HAProxy is not installed")
async def test_balancer_gives_no_connection_to_a_node_that_accepts_and_does_not_speak(
    servers: Services, tmp_path: Path
) -> None:
    async def says_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)
        writer.close()

    broker, port = httpx.URL(servers.broker_url), free_port()
    hanging = await asyncio.start_server(says_nothing, "127.0.0.1", 0)
    hung = hanging.sockets[0].getsockname()[1]
    [example] = EXAMPLE.findall((ROOT / "docs/connections.md").read_text())
    example = example.replace(":5672\n  mode", f"127.0.0.1:{port}\n  mode").replace("h1:5672", f"127.0.0.1:{hung}")
    example = re.sub("h[23]:5672", f"{broker.host}:{broker.port}", example)
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(example)
    running = await asyncio.create_subprocess_exec(str(HAPROXY), "-f", str(configuration), "-db")
    through = str(broker.copy_with(host="127.0.0.1", port=port))

    async def connects(times: int = 1) -> bool:
        for _ in range(times):
            try:
                async with asyncio.timeout(2), await aio_pika.connect(through):
                    pass
            except (AMQPConnectionError, OSError):
                return False
        return True

    try:
        await eventually(lambda: connects(6), within_seconds=30)
        assert await connects(6)
    finally:
        running.terminate()
        await running.wait()
        hanging.close()
