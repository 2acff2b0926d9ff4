"""Runs both services in the test's event loop, on real servers, over real HTTP."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, TypeVar

import aio_pika
import asyncpg
import httpx
import uvicorn
from aio_pika.abc import AbstractChannel, AbstractQueue
from fastapi import FastAPI

from dev.backend import ROOT, Services
from gateway.__main__ import build_server_config
from gateway.app import create_app
from gateway.settings import GatewaySettings
from shared.connections import Connections
from shared.partitions import find_partitions
from shared.topology import Topology
from tests.support import canaries, witness
from worker.consumer import Consumer
from worker.health import create_health_app
from worker.sessions import SESSION_SETTINGS
from worker.settings import WorkerSettings

ROLES_SQL = (ROOT / "dev/roles.sql").read_text()
HOOKS = [canaries.in_no_problem, witness.knows_every_field_code]
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=2)
"""Shorter than the gateway's, so that no request is sent on a connection that the gateway is closing."""
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody; every client would otherwise load the system's certificates, which takes long."""
T = TypeVar("T")


async def create_roles(database_url: str) -> None:
    """Creates Inkwell's roles, each with its name as its password, and grants their rights on the database."""
    passwords = {f"inkwell.{role}_password": f"inkwell_{role}" for role in ("migrator", "worker", "gateway")}
    administrator = await asyncpg.connect(database_url, server_settings=passwords)
    try:
        await administrator.execute("select pg_advisory_lock(hashtext('inkwell tests'))")  # roles belong to the server
        await administrator.execute(ROLES_SQL)
    finally:
        await administrator.close()


async def declare(servers: Services, topology: Topology) -> None:
    """Declares the queues, as the worker does."""
    async with await aio_pika.connect(servers.broker_url_of("worker")) as connection:
        await declare_on(await connection.channel(), topology)
    async with await aio_pika.connect(servers.hints_url_of("worker")) as connection:
        await topology.declare_changes(await connection.channel())


async def declare_on(channel: AbstractChannel, topology: Topology) -> None:
    """Declare the exchanges and the queues for commands on the channel."""
    await topology.declare_former_routes(channel)
    await topology.declare_number(channel)
    for partition in range(topology.partitions):
        await topology.declare_partition(channel, partition)
    await topology.declare_unreadable(channel)


async def delete_queue(servers: Services, name: str) -> None:
    """Deletes a queue, as an administrator."""
    async with await aio_pika.connect(servers.broker_url) as connection:
        await (await connection.channel()).queue_delete(name)


async def delete(servers: Services, topology: Topology) -> None:
    """Deletes the queues and exchanges, as an administrator."""
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        for declared in (topology, await find_partitions(channel, topology) or topology):
            for name in (*map(topology.command_queue, range(declared.partitions)), topology.unreadable_queue):
                await channel.queue_delete(name)
            for name in (declared.routes_exchange, declared.closed_routes_exchange, declared.range_exchange):
                await channel.exchange_delete(name)
        for name in (topology.commands_exchange, topology.former_routes_exchange):
            await channel.exchange_delete(name)
    await delete_changes(servers, topology)


async def delete_changes(servers: Services, topology: Topology) -> None:
    """Delete the exchange for hints, as the worker, which may."""
    async with await aio_pika.connect(servers.hints_url_of("worker")) as connection:
        await (await connection.channel()).exchange_delete(topology.changes_exchange)


@asynccontextmanager
async def copies(servers: Services, topology: Topology) -> AsyncIterator[AbstractQueue]:
    """A queue that receives a copy of every message with commands during the block."""
    async with await aio_pika.connect(servers.broker_url) as connection:
        queue = await (await connection.channel()).declare_queue(exclusive=True)
        for partition in range(topology.partitions):
            await queue.bind(topology.commands_exchange, topology.routing_key(partition))
        yield queue


async def bodies(queue: AbstractQueue) -> list[str]:
    """Takes every message out of the queue."""
    taken: list[str] = []
    while message := await queue.get(fail=False, no_ack=True):
        taken.append(message.body.decode())
    return taken


async def eventually(
    condition: Callable[[], Awaitable[T | None]], *, within_seconds: float = 20.0, every_seconds: float = 0.05
) -> T:
    """Returns the condition's first true result; raises TimeoutError if there is none in time."""
    async with asyncio.timeout(within_seconds):
        while not (result := await condition()):
            await asyncio.sleep(every_seconds)
        return result


async def decided(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """Returns the state of a command, from its URL, once it has an outcome."""

    async def state() -> dict[str, Any] | None:
        state: dict[str, Any] = (await client.get(url)).json()
        return state if state["answer"] else None

    return await eventually(state)


class Server(uvicorn.Server):
    """A server that leaves signal handling to pytest."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def settings_without_servers(**changes: object) -> GatewaySettings:
    """Settings of a gateway whose broker and database are down."""
    key = "a-key-that-is-used-in-the-tests-only"
    urls = {"database_url": "postgresql://nobody@127.0.0.1:1/nowhere", "broker_url": "amqp://nobody@127.0.0.1:1/"}
    return GatewaySettings.model_validate(
        urls | {"signing_keys": (key,), "fingerprint_key": key, "auth": "none"} | changes
    )


@asynccontextmanager
async def serving(app: FastAPI, settings: GatewaySettings | None = None) -> AsyncIterator[str]:
    """Serves the app on a free port of loopback; yields its base URL."""
    config = build_server_config(app, settings or settings_without_servers())
    config.port = 0
    config.loop = "none"
    config.timeout_graceful_shutdown = 5
    server = Server(config)
    task = asyncio.create_task(server.serve())
    await eventually(lambda: _is_started(server, task))
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


async def _is_started(server: uvicorn.Server, task: asyncio.Task[None]) -> bool:
    if task.done():
        await task
    return server.started


@asynccontextmanager
async def gateway(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    """A running gateway, and a client for it."""
    async with serving(create_app(settings), settings) as url, client(url) as of_gateway:
        yield of_gateway


def client(url: str, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
    """A client that checks every response."""
    hooks = {"response": HOOKS}
    return httpx.AsyncClient(
        base_url=url, headers=headers, timeout=30, event_hooks=hooks, limits=LIMITS, verify=NO_CERTIFICATES
    )


@contextmanager
def connected(settings: WorkerSettings, name: str, size: int = 1) -> Iterator[Connections]:
    """A worker's connections to its database, with the settings of its sessions."""
    connections = Connections(settings.database_url, name, size, SESSION_SETTINGS)
    try:
        yield connections
    finally:
        connections.close()


@asynccontextmanager
async def starting_worker(settings: WorkerSettings) -> AsyncIterator[Consumer]:
    """A worker that may be unable to consume; stopped gracefully, as by SIGTERM."""
    with connected(settings, "inkwell-worker") as connections:
        consumer = Consumer(settings, connections)
        running = asyncio.create_task(consumer.run())
        try:
            yield consumer
        finally:
            consumer.stop()
            await running


@asynccontextmanager
async def worker(settings: WorkerSettings) -> AsyncIterator[Consumer]:
    """A worker that consumes every partition."""
    async with starting_worker(settings) as consumer:
        await eventually(lambda: _is_consuming(consumer))
        yield consumer


async def _is_consuming(consumer: Consumer) -> bool:
    return len(consumer.partitions) == consumer.topology.partitions > 0


async def readiness(consumer: Consumer) -> tuple[int, dict[str, Any]]:
    """The status and the body with which a worker answers `/health/ready`."""
    transport = httpx.ASGITransport(create_health_app(consumer))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        response = await client.get("/health/ready")
        return response.status_code, response.json()


def dated(note: dict[str, Any]) -> dict[str, Any]:
    """The note with parsed dates: the previous version omits zeros at the end of a date."""
    return note | {name: datetime.fromisoformat(note[name]) for name in ("created_date", "updated_date")}


def lasting_headers(response: httpx.Response) -> dict[str, str]:
    """The headers that stay the same when a response is repeated."""
    return {name: value for name, value in response.headers.items() if name not in ("date", "x-request-id")}
