"""The contenders as running processes: one HTTP process each, and each with its own database on one server."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from uuid import uuid4

import aio_pika
import asyncpg
import httpx
import psutil
from sqlalchemy import make_url

from bench.database import Database, Schema
from bench.servers import Server
from dev.backend import Services
from gateway.auth.access_tokens import AccessTokens
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.contracts import Scope
from shared.topology import Topology

DIRECT = "direct"
INKWELL = "Inkwell"
INKWELL_202 = "Inkwell, 202"
INKWELL_8 = "Inkwell, 8 partitions"
SILENT = "Inkwell, silent"
NAIVE = "naive queue"
BARE = "bare FastAPI"
BARE_UVICORN = "bare uvicorn"

KEY = "for-measuring-only-for-measuring-only"
TOKEN_LIFETIME_SECONDS = 86_400
"""Longer than any run."""
PARTITIONS = 1
"""The default, for a broker without queues."""
START_SECONDS = 30.0
UVICORN = ("uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error")


@dataclass(frozen=True, slots=True)
class Contender:
    """One implementation of the API."""

    name: str
    url: str
    processes: list[psutil.Process]
    """All of its processes, servers included; the one that answers requests is first."""
    database: Database | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """The headers of its requests."""
    access_tokens: list[str] = field(default_factory=list)
    """A token for each of its users, who own the notes in turn; empty without authentication."""

    async def ready(self) -> "Contender":
        """Wait until a note can be created."""
        headers = authorization(*self.access_tokens[:1])
        async with (
            asyncio.timeout(START_SECONDS),
            httpx.AsyncClient(base_url=self.url, timeout=10, headers=headers) as client,
        ):
            while await _status(client) != 201:
                await asyncio.sleep(0.1)
        return self


async def _status(client: httpx.AsyncClient) -> int:
    try:
        note = {"title": "", "description": ""}
        return (await client.post("/notes/", json=note)).status_code
    except httpx.TransportError:
        return 0


def authorization(access_token: str = "") -> dict[str, str]:
    """The header of a token's holder; none without a token."""
    return {"Authorization": f"Bearer {access_token}"} if access_token else {}


class Stage:
    """Starts the contenders; everything it created is removed when its exits are closed."""

    def __init__(self, services: Services, exits: AsyncExitStack, users: int) -> None:
        self.services = services
        self._users = users
        self.postgres = Server(services.database_url)
        self.rabbitmq = Server(services.broker_url)
        self._run = uuid4().hex[:8]
        self._exits = exits

    async def contenders(self) -> list[Contender]:
        """All contenders, ready."""
        beside = *await self._partitioned(), *await self._silent(), *await self._naive(), *await self._bare()
        return [*await self._direct(), *await self._inkwell(), *beside]

    async def _direct(self) -> list[Contender]:
        database = await self._database("direct", Schema.DIRECT)
        url, process = await self._serve("bench.direct.app:app", BENCH_DATABASE_URL=database.url)
        contender = Contender(DIRECT, url, [process, *self.postgres.processes], database)
        return [await contender.ready()]

    async def _inkwell(self) -> list[Contender]:
        """Two contenders: clients that wait for the outcome, and clients that ask for 202 after the confirm."""
        gateway, settings = await self.gateway("inkwell")
        worker = await self.worker(settings)
        waiting = await replace(gateway, processes=[*gateway.processes, worker]).ready()
        return [waiting, replace(waiting, name=INKWELL_202, headers={"Prefer": "respond-async"})]

    async def _partitioned(self) -> list[Contender]:
        """With as many queues as several workers need."""
        gateway, settings = await self.gateway("partitioned", partitions=8)
        worker = await self.worker(settings)
        return [await replace(gateway, name=INKWELL_8, processes=[*gateway.processes, worker]).ready()]

    async def _silent(self) -> list[Contender]:
        """The same without telemetry."""
        gateway, settings = await self.gateway("silent", "bench.limit.silent", "gateway")
        worker = await self.worker(settings, "bench.limit.silent", "worker")
        return [await replace(gateway, name=SILENT, processes=[*gateway.processes, worker]).ready()]

    async def gateway(self, name: str, *module: str, partitions: int = PARTITIONS) -> tuple[Contender, dict[str, str]]:
        """A gateway with its own database and queues, which accepts writes once a worker has the same settings."""
        database = await self._database(name, Schema.INKWELL)
        topology = Topology(f"bench-{self._run}-{name}", partitions)
        settings = self._settings(database, topology)
        await migrate(settings)
        queues = (*map(topology.command_queue, range(partitions)), topology.unreadable_queue)
        exchanges = (
            topology.commands_exchange,
            topology.routes_exchange,
            topology.range_exchange,
            topology.former_routes_exchange,
        )
        self._exits.push_async_callback(self._delete_queues, *queues, exchanges=exchanges)
        url, gateway = await self._serve_gateway(*(module or ("gateway",)), **settings)
        processes = [gateway, *self.postgres.processes, *self.rabbitmq.processes]
        tokens = access_tokens(settings, self._users)
        return Contender(INKWELL, url, processes, database, access_tokens=tokens), settings

    async def worker(self, settings: dict[str, str], *module: str) -> psutil.Process:
        """A worker with these settings."""
        return await self._start(*(module or ("worker",)), **settings)

    def _settings(self, database: Database, topology: Topology) -> dict[str, str]:
        return {
            "INKWELL_DATABASE_URL": database.url,
            "INKWELL_BROKER_URL": self.services.broker_url,
            "INKWELL_QUEUE_PREFIX": topology.prefix,
            "INKWELL_SIGNING_KEYS": KEY,
            "INKWELL_FINGERPRINT_KEY": KEY,
            "INKWELL_AUTH": "password",
            "INKWELL_TOKEN_LIFETIME_SECONDS": str(TOKEN_LIFETIME_SECONDS),
            "INKWELL_WORKER_HEALTH_PORT": str(free_port()),
            "INKWELL_LOG_LEVEL": "error",
        } | ({} if topology.partitions == PARTITIONS else {"INKWELL_PARTITIONS": str(topology.partitions)})

    async def reader(self, name: str) -> Contender:
        """A gateway with its own database and without writers."""
        database = await self._database(name, Schema.INKWELL)
        settings = self._settings(database, Topology(f"bench-{self._run}-{name}", PARTITIONS))
        await migrate(settings)
        url, gateway = await self._serve_gateway("gateway", **settings)
        processes, tokens = [gateway, *self.postgres.processes], access_tokens(settings, 1)
        return Contender(INKWELL, url, processes, database, access_tokens=tokens)

    async def _naive(self) -> list[Contender]:
        database = await self._database("naive", Schema.NAIVE)
        settings = {
            "BENCH_DATABASE_URL": database.url,
            "BENCH_BROKER_URL": self.services.broker_url,
            "BENCH_QUEUE": f"bench-{self._run}.naive",
        }
        self._exits.push_async_callback(self._delete_queues, settings["BENCH_QUEUE"])
        worker = await self._start("bench.limit.naive_worker", **settings)
        url, gateway = await self._serve("bench.limit.naive:app", **settings)
        processes = [gateway, worker, *self.postgres.processes, *self.rabbitmq.processes]
        return [await Contender(NAIVE, url, processes, database).ready()]

    async def _bare(self) -> list[Contender]:
        """The bare framework and the bare server, which read nothing."""
        apps = {BARE: ("bench.limit.framework:app",), BARE_UVICORN: ("bench.limit.server:app", "--no-proxy-headers")}
        served = {name: await self._serve(*app) for name, app in apps.items()}
        return [await Contender(name, url, [process]).ready() for name, (url, process) in served.items()]

    async def _database(self, name: str, schema: Schema) -> Database:
        """A new database, dropped at the end."""
        name = f"bench_{name}_{self._run}"
        admin = await asyncpg.connect(self.services.database_url)
        self._exits.push_async_callback(admin.close)
        await admin.execute(f"create database {name}")
        self._exits.push_async_callback(admin.execute, f"drop database {name} with (force)")
        url = make_url(self.services.database_url).set(database=name).render_as_string(hide_password=False)
        return Database(url, await asyncpg.connect(url), schema)

    async def _delete_queues(self, *names: str, exchanges: tuple[str, ...] = ()) -> None:
        async with await aio_pika.connect(self.services.broker_url) as connection:
            channel = await connection.channel()
            for name in names:
                await channel.queue_delete(name)
            for name in exchanges:
                await channel.exchange_delete(name)

    async def _serve(self, *app: str, **settings: str) -> tuple[str, psutil.Process]:
        port = str(free_port())
        return f"http://127.0.0.1:{port}", await self._start(*UVICORN, *app, "--port", port, **settings)

    async def _serve_gateway(self, *module: str, **settings: str) -> tuple[str, psutil.Process]:
        """With the default settings for users."""
        port = str(free_port())
        return f"http://127.0.0.1:{port}", await self._start(*module, INKWELL_PORT=port, **settings)

    async def _start(self, *module: str, **settings: str) -> psutil.Process:
        process = await start(*module, **settings)
        self._exits.push_async_callback(stop, process)
        return psutil.Process(process.pid)


@asynccontextmanager
async def running(services: Services, users: int) -> AsyncIterator[tuple[Stage, dict[str, Contender]]]:
    """All contenders by name for the block; those with authentication have this many signed-in users."""
    async with AsyncExitStack() as exits:
        stage = Stage(services, exits, users)
        yield stage, {contender.name: contender for contender in await stage.contenders()}


def access_tokens(environment: dict[str, str], users: int) -> list[str]:
    """The access tokens of the first users of a gateway with these settings."""
    settings = {name.removeprefix("INKWELL_").lower(): value for name, value in environment.items()}
    issuer = AccessTokens(GatewaySettings.model_validate(settings), Clock())
    return [issuer.issue(user, 1, frozenset(Scope)) for user in range(1, users + 1)]


async def start(*module: str, **settings: str) -> Process:
    """A Python module as a process, which shares this one's stderr."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", *module, env={**os.environ, **settings}, stdout=sys.stderr
    )


async def migrate(settings: dict[str, str]) -> None:
    """Migrates the database of the settings."""
    migration = await start("alembic", "upgrade", "head", **settings)
    await migration.wait()


async def stop(process: Process) -> None:
    """End the process."""
    if process.returncode is None:
        process.terminate()
    await process.wait()


def free_port() -> int:
    """A free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
