"""The machine and the versions of a measurement."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import aio_pika
import asyncpg
import psutil

from dev.backend import Services


async def describe(services: Services) -> dict[str, str]:
    """What a reader needs to interpret the figures."""
    return {
        "processor": f"{os.cpu_count()} cores, {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "other load at the start": f"{os.getloadavg()[0]:.1f} processes",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Postgres": await _postgres_version(services.database_url),
        "RabbitMQ": await _rabbitmq_version(services.broker_url),
        **{name: version(name) for name in ("fastapi", "uvicorn", "asyncpg", "databases", "sqlalchemy", "aio-pika")},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


async def _postgres_version(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("show server_version")).split()[0]
    finally:
        await connection.close()


async def _rabbitmq_version(url: str) -> str:
    async with await aio_pika.connect(url) as connection:
        channel = await (await connection.channel()).get_underlay_channel()
        found = channel.connection.server_properties["version"]
        return found.decode() if isinstance(found, bytes) else str(found)
