"""Inkwell as processes, which tests may kill, pause and starve, on the session's servers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import asyncpg
import httpx

from dev.backend import ROOT, Services, as_user, with_hints_vhost
from tests.support import canaries
from tests.support.accounts import sign_up
from tests.support.forking import SERVICES, Fork
from tests.support.harness import NO_CERTIFICATES, eventually
from tests.support.proxy import Proxy, free_port, proxy_to

IMPORTING_SECONDS = 5.0
KEY = "a-key-that-is-used-in-the-tests-only"
SLOW_STORE = """
create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(%s); return null; end $$;
create trigger slow after insert on commands for each statement execute function slow();
"""
TREES = {service: Path(os.environ.get(f"{service.upper()}_TREE", ROOT)) for service in ("gateway", "worker")}
"""The source folder of each service; `make versions` runs the tests with another version of one."""


class Process:
    """A service in a process, with its log in a file."""

    def __init__(
        self, command: list[str], environment: dict[str, str], log: Path, ready_url: str, folder: Path = ROOT
    ) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self._ready_url = ready_url
        self.folder = folder
        """The folder of its source, from which the next start runs it."""
        self._process: subprocess.Popen[bytes] | Fork | None = None
        self._started = 0.0

    def variant(self, command: list[str] | None = None, **environment: str) -> "Process":
        """The same process with another command or other settings."""
        folder = ROOT if command else self.folder
        command = command or self._command
        return type(self)(command, self._environment | environment, self._log, self._ready_url, folder)

    def twin(self, port: int, folder: Path | None = None) -> "Process":
        """The same service on another port, from its own source or from another folder."""
        environment = self._environment | {"INKWELL_PORT": str(port), "INKWELL_WORKER_HEALTH_PORT": str(port)}
        ready_url = f"http://127.0.0.1:{port}/health/ready"
        return type(self)(self._command, environment, self._log, ready_url, folder or self.folder)

    async def start(self, *, ready: bool = True) -> None:
        """Starts the process and waits until it is ready."""
        self._process, self._started = self._launch({**os.environ, **self._environment}), monotonic()
        if ready:
            await self._wait_until_ready()

    def _launch(self, environment: dict[str, str]) -> "subprocess.Popen[bytes] | Fork":
        if not _knows_hints_vhost(self.folder):
            url = environment["INKWELL_BROKER_URL"]
            environment = environment | {"INKWELL_BROKER_URL": url.removesuffix(with_hints_vhost(""))}
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=environment, cwd=self.folder, stderr=log, stdout=log)

    async def _wait_until_ready(self) -> None:
        """Fails with the end of its log, and kills the process, if it is not ready within a minute."""
        try:
            await eventually(self.is_ready, within_seconds=60)
        except TimeoutError:
            await self.kill()
            raise AssertionError(f"not ready after a minute; its log ends with:\n{self._log_end()}") from None

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])

    async def is_ready(self) -> bool:
        """Whether its probe reports ready."""
        async with httpx.AsyncClient(timeout=5, verify=NO_CERTIFICATES) as client:
            try:
                return (await client.get(self._ready_url)).status_code == 200
            except httpx.TransportError:
                return False

    @property
    def environment(self) -> dict[str, str]:
        """Its environment variables beyond those of the tests."""
        return dict(self._environment)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def may_be_importing(self) -> bool:
        """Whether it was started just now, and may not handle signals yet."""
        return monotonic() - self._started < IMPORTING_SECONDS

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    async def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Sends the signal, waits for the end and returns the exit code."""
        assert self._process
        self.send(signal_number)
        return await asyncio.to_thread(self._process.wait, 60)

    def send(self, signal_number: int) -> None:
        """Sends the signal, if the process runs."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal_number)

    async def kill(self) -> None:
        """Sends SIGKILL."""
        if self._process:
            await self.stop(signal.SIGKILL)

    @property
    def leaked_secrets(self) -> list[str]:
        """The kinds of secrets in its log."""
        return canaries.find_secrets(self._log.read_text(errors="replace"))

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """The events it has logged, or only those with this text."""
        return [each for each in self._events() if event is None or each.get("event") == event]

    def _events(self) -> Iterator[dict[str, Any]]:
        for line in self._log.read_text(errors="replace").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                yield {"event": line}


def _knows_hints_vhost(folder: Path) -> bool:
    """Whether the services of a folder accept that parameter: versions up to 1.1 refuse it."""
    source = folder / "shared/broker_url.py"
    return not source.exists() or "hints_vhost" in source.read_text()


class ForkedProcess(Process):
    """A process of this source, which is forked where that makes no difference."""

    def _launch(self, environment: dict[str, str]) -> "subprocess.Popen[bytes] | Fork":
        *python, service = self._command
        is_of_this_source = self.folder == ROOT and python == [sys.executable, "-m"] and service in SERVICES
        if is_of_this_source and "LD_PRELOAD" not in environment:  # which only a new program gets
            return Fork(service, environment, self.folder, self._log)
        return super()._launch(environment)


@dataclass
class Stack:
    """A gateway and a worker as processes, their links through proxies, and a client that is signed in."""

    gateway: Process
    worker: Process
    client: httpx.AsyncClient
    database_url: str
    links: dict[str, Proxy]
    """By `gateway-broker`, `gateway-database`, `worker-broker` and `worker-database`."""
    environment: dict[str, str]
    queue_prefix: str

    @asynccontextmanager
    async def second_gateway(self, folder: Path | None = None) -> AsyncIterator[httpx.AsyncClient]:
        """A client of a second gateway during the block, from the source in a folder."""
        port = free_port()
        gateway = self.gateway.twin(port, folder)
        await gateway.start()
        try:
            base_url, headers = f"http://127.0.0.1:{port}", self.client.headers
            async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=30) as client:
                yield client
        finally:
            await gateway.kill()

    async def query(self, sql: str) -> list[asyncpg.Record]:
        """The rows, over a new connection, since an earlier one may be broken by a fault."""
        connection = await asyncpg.connect(self.database_url, timeout=5)
        try:
            return await connection.fetch(sql)
        finally:
            connection.terminate()

    async def script(self, sql: str) -> None:
        """Runs several statements."""
        connection = await asyncpg.connect(self.database_url, timeout=5)
        try:
            await connection.execute(sql)
        finally:
            connection.terminate()

    async def slow_down_stores(self, seconds: float) -> None:
        """Makes Postgres wait whenever a worker stores outcomes."""
        await self.script(SLOW_STORE % seconds)

    async def value(self, sql: str) -> Any:
        """The first value of the first row."""
        return (await self.query(sql))[0][0]

    async def titles(self) -> set[str]:
        """The titles of the notes that exist."""
        return {row["title"] for row in await self.query("select title from notes")}

    async def idle_in_transaction(self) -> int:
        """The number of idle sessions with an open transaction."""
        return int(
            await self.value(
                "select count(*) from pg_stat_activity where state like 'idle in transaction%' "
                "and datname = current_database() and state_change < now() - interval '1 second'"
            )
        )


@dataclass
class Load:
    """Writes from several clients at once, and their responses by title."""

    client: httpx.AsyncClient
    responses: dict[str, httpx.Response | None] = field(default_factory=dict)
    """None if no response came."""
    slowest_seconds: float = 0.0
    _stopping: bool = False

    @asynccontextmanager
    async def running(self, clients: int = 8) -> AsyncIterator["Load"]:
        """Writes during the block."""
        tasks = [asyncio.create_task(self._write()) for _ in range(clients)]
        try:
            yield self
        finally:
            self._stopping = True
            await asyncio.gather(*tasks)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            title, started = uuid4().hex, loop.time()
            self.responses[title] = None
            try:
                self.responses[title] = await self.client.post("/notes/", json=canaries.NOTE | {"title": title})
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            self.slowest_seconds = max(self.slowest_seconds, loop.time() - started)
            await asyncio.sleep(0.01)

    def titles(self, *statuses: int) -> set[str]:
        """The titles whose writes were answered with one of the statuses."""
        return {title for title, response in self.responses.items() if response and response.status_code in statuses}

    @property
    def accepted(self) -> set[str]:
        return self.titles(201, 202)

    @property
    def statuses(self) -> dict[int, int]:
        """How often each status was answered; 0 means no response."""
        counts: dict[int, int] = {}
        for response in self.responses.values():
            status = response.status_code if response else 0
            counts[status] = counts.get(status, 0) + 1
        return counts


async def check(load: Load, stack: Stack, *, within_seconds: float = 30.0) -> None:
    """Checks that every accepted write has exactly one effect, that no refused one has any, and that none failed."""

    async def all_applied() -> bool:
        return load.accepted <= await stack.titles()

    await eventually(all_applied, within_seconds=within_seconds, every_seconds=0.5)
    assert load.accepted, load.statuses
    assert not load.titles(503) & await stack.titles()
    assert await stack.value("select count(*) - count(distinct title) from notes") == 0
    assert await stack.value("select count(*) from commands where status = 'failed'") == 0
    assert not await stack.idle_in_transaction()


@asynccontextmanager
async def running_stack(
    database_url: str, servers: Services, queue_prefix: str, folder: Path, **settings: str
) -> AsyncIterator[Stack]:
    """A stack for the block; settings are INKWELL_ variables in lower case, an empty one is unset."""
    async with AsyncExitStack() as exits:
        links: dict[str, Proxy] = {}
        environments: dict[str, dict[str, str]] = {}
        for service in ("gateway", "worker"):
            role = f"inkwell_{service}"
            urls = {"database": as_user(database_url, role, role), "broker": servers.broker_url_of(service)}
            environments[service] = {"INKWELL_QUEUE_PREFIX": queue_prefix}
            for name, url in urls.items():
                target = httpx.URL(url)
                proxy = await exits.enter_async_context(proxy_to(target.host, target.port or 0))
                links[f"{service}-{name}"] = proxy
                moved = str(target.copy_with(host="127.0.0.1", port=proxy.port))
                environments[service][f"INKWELL_{name.upper()}_URL"] = moved
        gateway_port, health_port = str(free_port()), str(free_port())
        chosen = {f"INKWELL_{name.upper()}": value for name, value in settings.items()}
        common = {name: value for name, value in ({"INKWELL_PARTITIONS": "2"} | chosen).items() if value} | {
            "INKWELL_SIGNING_KEYS": KEY,
            "INKWELL_FINGERPRINT_KEY": KEY,
            "INKWELL_PORT": gateway_port,
            "INKWELL_WORKER_HEALTH_PORT": health_port,
            "INKWELL_LOG_FORMAT": "json",
        }
        base_url = f"http://127.0.0.1:{gateway_port}"
        ready = {"gateway": base_url, "worker": f"http://127.0.0.1:{health_port}"}
        gateway, worker = [
            ForkedProcess(
                [sys.executable, "-m", service],
                common | environments[service],
                folder / f"{service}.log",
                f"{ready[service]}/health/ready",
                TREES[service],
            )
            for service in ("gateway", "worker")
        ]
        hooks = {"response": [canaries.in_no_problem]}
        client = await exits.enter_async_context(httpx.AsyncClient(base_url=base_url, timeout=30, event_hooks=hooks))
        stack = Stack(gateway, worker, client, database_url, links, common | environments["worker"], queue_prefix)
        for process in (worker, gateway):  # the worker declares the queues
            exits.push_async_callback(process.kill)
            await process.start()
        client.headers.update((await sign_up(client)).headers)
        yield stack
    assert not gateway.leaked_secrets + worker.leaked_secrets
