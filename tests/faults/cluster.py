"""Two gateways and three workers as processes, a rig's servers, and a proxy on each link between them."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic

import aiohttp
import asyncpg
import psutil
from aio_pika.abc import AbstractChannel
from pydantic import Secret

from dev.backend import ROOT, Services, as_user, with_database
from gateway.auth.access_tokens import AccessTokens
from gateway.settings import GatewaySettings
from shared.broker import open_connection
from shared.broker_url import BrokerUrl
from shared.clock import Clock
from shared.contracts import Scope
from shared.topology import Topology
from tests.faults.connection import PUBLISH_SECONDS, READ_SECONDS, WAIT_SECONDS, Owner, session
from tests.faults.servers import Servers, ServersT
from tests.support.accounts import bearer
from tests.support.harness import create_roles
from tests.support.proxy import Proxy, free_port, proxy_to
from tests.support.stack import KEY, Process

GATEWAYS, WORKERS, PARTITIONS, OWNERS, QUIET_OWNERS = 2, 3, 8, 16, 4
RECOVERY_SECONDS = 60.0
PREFIX = "faults"
MIGRATED = "inkwell_faults"
DATABASE_AUDIT = """
create table audit (
    seq bigint generated always as identity, transaction bigint not null default txid_current(),
    kind text, id text, owner_id bigint, version integer, title text, description text,
    created_date timestamptz, updated_date timestamptz, deleted_date timestamptz, revision bigint,
    purged_revision bigint, type text, status text, http_status integer, note_id bigint, body text
);
create table cured (text text primary key);
create function audit_note() returns trigger language plpgsql security definer as $$
declare note notes;
begin
    if tg_op = 'DELETE' then note := old; else note := new; end if;
    if note.description like 'poison%' and note.description not in (select text from cured) then
        raise exception 'poison' using errcode = '22000';
    end if;
    insert into audit
        (kind, id, owner_id, version, title, description, created_date, updated_date, revision)
        values (lower(tg_op), note.id, note.owner_id, note.version, note.title, note.description, note.created_date,
            note.updated_date, note.mod_revision);
    return null;
end $$;
create function audit_tombstone() returns trigger language plpgsql security definer as $$
declare note tombstones;
begin
    if tg_op = 'DELETE' then note := old; else note := new; end if;
    insert into audit
        (kind, id, owner_id, version, title, description, created_date, updated_date, deleted_date, revision)
        values (case tg_op when 'DELETE' then 'unburied' else 'buried' end, note.id, note.owner_id, note.version,
            note.title, note.description, note.created_date, note.updated_date, note.deleted_date, note.mod_revision);
    return null;
end $$;
create function audit_owner() returns trigger language plpgsql security definer as $$
begin
    insert into audit (kind, id, owner_id, revision, purged_revision, deleted_date)
        values ('owner', new.id, new.id, new.revision, new.purged_revision, new.deleted_date);
    return null;
end $$;
create function audit_command() returns trigger language plpgsql security definer as $$
begin
    insert into audit (kind, id, owner_id, version, type, status, http_status, note_id, updated_date, body)
        values ('command', new.id, new.owner_id, new.note_version, new.type, new.status, new.http_status, new.note_id,
            new.decided_at, new.body);
    return null;
end $$;
create trigger audit after insert or update or delete on notes for each row execute function audit_note();
create trigger audit after insert or update or delete on tombstones for each row execute function audit_tombstone();
create trigger audit after insert or update of status, decided_at on commands
    for each row execute function audit_command();
create trigger audit after update on users for each row execute function audit_owner();
"""
"""An audit of notes, the trash, commands and owners, in the order in which the owners are locked.

Housekeeping erases without these locks, so its rows may be among those of another transaction.

A command's `updated_date` is when it was decided, and shows its place among those of its transaction. Housekeeping
erases bodies, which decides nothing.
"""
HOSTS = re.compile("(?<=@)[^/]+")
Check = Callable[[], Awaitable[bool]]


@dataclass
class Service:
    """A gateway or a worker with its links: `database` and `broker`, `database-2` to a second host, and so on."""

    name: str
    process: Process
    base_url: str
    links: dict[str, Proxy]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Cluster(Generic[ServersT]):
    """Everything that the nemesis may break; a fault holds the lock of the part that it breaks."""

    servers: ServersT
    database_url: str
    gateways: list[Service]
    workers: list[Service]
    clients: list[aiohttp.ClientSession]
    owners: list[Owner]
    quiet_owners: list[Owner]
    """They seldom write, so that each of their writes has to wake those who follow them."""
    tree: Path
    """The folder of the services' source."""
    folder: Path
    """A folder for files of the run."""
    partitions: int = PARTITIONS
    """The current number."""

    @property
    def services(self) -> list[Service]:
        return [*self.gateways, *self.workers]

    def url_of(self, kind: str) -> str:
        """The URL of the database for a gateway or worker, without a proxy."""
        return as_user(self.database_url, f"inkwell_{kind}", f"inkwell_{kind}")

    @property
    def topology(self) -> Topology:
        return Topology(PREFIX, self.partitions)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """An administrator's channel."""
        async with open_connection(Secret(BrokerUrl.parse(self.servers.services.broker_url)), "nemesis") as connection:
            yield await connection.channel()

    async def query(self, sql: str) -> list[asyncpg.Record]:
        """The rows that an administrator gets."""
        connection = await asyncpg.connect(self.database_url, timeout=10)
        try:
            return await connection.fetch(sql)
        finally:
            connection.terminate()

    async def statements(self, *statements: str) -> None:
        """Runs them as an administrator, each in a transaction of its own."""
        connection = await asyncpg.connect(self.database_url, timeout=10)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            connection.terminate()

    async def recovered(self) -> tuple[float, list[str]]:
        """How many seconds it takes until everything is served again, and what recovered last."""
        now = asyncio.get_running_loop().time
        started, missing, last = now(), self._checks(), list[str]()
        while missing and now() < started + RECOVERY_SECONDS:
            served = await asyncio.gather(*(check() for check in missing.values()))
            checked, missing = (
                missing,
                {
                    name: check
                    for (name, check), is_served in zip(missing.items(), served, strict=True)
                    if not is_served
                },
            )
            last = list(missing) or last
            if not missing and len(checked) < len(self._checks()):
                missing = self._checks()  # all at the same time
        return now() - started, last

    def _checks(self) -> dict[str, Check]:
        """Whether the services are ready and each gateway serves writes and reads of every partition."""
        owners = {self.topology.partition_of(owner.id): owner for owner in self.owners}
        checks: dict[str, Check] = {each.name: each.process.is_ready for each in self.services}
        for gateway, client in zip(self.gateways, self.clients, strict=True):
            for partition, owner in owners.items():
                checks[f"partition {partition} through {gateway.name}"] = partial(probe, client, owner)
        return checks

    async def leftovers(self) -> dict[str, Any]:
        """What must not grow: open files and memory of the processes, sessions, transactions, messages."""
        queues = json.loads(await self.servers.rabbitmqctl("--formatter", "json", "list_queues", "name", "messages"))
        [(sessions, idle)] = await self.query(
            "select count(*), count(*) filter (where state like 'idle in transaction%') from pg_stat_activity"
            " where usename in ('inkwell_gateway', 'inkwell_worker')"
        )
        processes = {each.name: psutil.Process(each.process.pid) for each in self.services}
        used = {f"{name} files": process.num_fds() for name, process in processes.items()}
        used |= {f"{name} MB": process.memory_info().rss // 2**20 for name, process in processes.items()}
        waiting = sum(queue["messages"] for queue in queues if ".commands." in queue["name"])
        dead = sum(queue["messages"] for queue in queues if ".dead-letters." in queue["name"])
        return used | {
            "sessions": sessions,
            "idle transactions": idle,
            "commands waiting": waiting,
            "dead letters": dead,
        }


async def probe(client: aiohttp.ClientSession, owner: Owner) -> bool:
    """Whether a write of the owner is applied and a read is answered."""
    note, timeout = {"title": "probe", "description": ""}, aiohttp.ClientTimeout(10)
    waiting = owner.headers | {"Prefer": "wait=3"}
    try:
        async with (
            client.post("/notes/", json=note, headers=waiting, timeout=timeout) as written,
            client.get("/notes/?limit=1", headers=owner.headers, timeout=timeout) as read,
        ):
            return (written.status, read.status) == (201, 200)
    except (aiohttp.ClientError, OSError):
        await asyncio.sleep(0.2)
        return False


@asynccontextmanager
async def running_cluster(
    opening: AbstractAsyncContextManager[ServersT], tree: Path = ROOT, logs: Path | None = None
) -> AsyncIterator[Cluster[ServersT]]:
    """A cluster of the services in a source tree, on these servers, for the block."""
    async with AsyncExitStack() as exits:
        servers = await exits.enter_async_context(opening)
        folder = logs or Path(exits.enter_context(TemporaryDirectory(prefix="inkwell-faults-")))
        folder.mkdir(parents=True, exist_ok=True)
        database_url = await migrated(servers.services, tree)
        services = [
            await exits.enter_async_context(service(f"{kind}-{number}", database_url, servers, folder, tree))
            for kind, count in (("worker", WORKERS), ("gateway", GATEWAYS))
            for number in range(1, count + 1)
        ]
        workers, gateways = services[:WORKERS], services[WORKERS:]
        await declare_number(servers)
        for each in services:
            exits.push_async_callback(each.process.kill)
            await each.process.start()
        clients = [await exits.enter_async_context(session(each.base_url)) for each in gateways]
        owners = await new_owners(database_url)
        cluster = Cluster(
            servers, database_url, gateways, workers, clients, owners[:OWNERS], owners[OWNERS:], tree, folder
        )
        await cluster.recovered()
        yield cluster


async def declare_number(servers: Servers[Any, Any]) -> None:
    """Gives the broker its number of partitions, which the services adopt, also when it changes."""
    async with open_connection(Secret(BrokerUrl.parse(servers.services.broker_url)), "nemesis") as connection:
        await Topology(PREFIX, PARTITIONS).declare_number(await connection.channel())


async def migrated(servers: Services, tree: Path) -> str:
    """The URL of a database with the schema and the audit."""
    database_url = with_database(servers.database_url, MIGRATED)
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute(f"create database {MIGRATED}")
    await admin.close()
    await create_roles(database_url)
    migrate = [sys.executable, "-m", "alembic", "upgrade", "head"]
    owner = {"INKWELL_DATABASE_URL": as_user(database_url, "inkwell_migrator", "inkwell_migrator")}
    await asyncio.to_thread(subprocess.run, migrate, env=owner, cwd=tree, check=True, capture_output=True)
    connection = await asyncpg.connect(database_url)
    await connection.execute(DATABASE_AUDIT)
    await connection.close()
    return database_url


@asynccontextmanager
async def service(
    name: str, database_url: str, servers: Servers[Any, Any], logs: Path, tree: Path
) -> AsyncIterator[Service]:
    """A gateway or worker that is not started yet; its links work during the block."""
    kind, port, links = name.partition("-")[0], str(free_port()), dict[str, Proxy]()
    environment = settings() | servers.environment(name)
    async with AsyncExitStack() as exits:
        for server, url in urls_of(kind, database_url, servers.services).items():
            proxies = [await exits.enter_async_context(proxy_to(*address)) for address in addresses_of(url)]
            links |= {f"{server}-{number}" if number > 1 else server: each for number, each in enumerate(proxies, 1)}
            environment[f"INKWELL_{server.upper()}_URL"] = with_addresses(url, [each.port for each in proxies])
        environment |= {"INKWELL_PORT": port, "INKWELL_WORKER_HEALTH_PORT": port}
        environment["INKWELL_METRICS_PORT"] = str(free_port())
        base_url, command = f"http://127.0.0.1:{port}", [sys.executable, "-m", kind]
        process = Process(command, environment, logs / f"{name}.log", f"{base_url}/health/ready", tree)
        yield Service(name, process, base_url, links)


def addresses_of(url: str) -> list[tuple[str, int]]:
    """Return the hosts of a URL with their ports."""
    hosts = (each.rpartition(":") for each in HOSTS.findall(url)[0].split(","))
    return [(host, int(port)) for host, _, port in hosts]


def with_addresses(url: str, ports: Iterable[int]) -> str:
    """Return the same URL with these ports of loopback as its hosts."""
    return HOSTS.sub(",".join(f"127.0.0.1:{port}" for port in ports), url, count=1)


def urls_of(kind: str, database_url: str, servers: Services) -> dict[str, str]:
    """The URLs of the servers for a gateway or worker."""
    role = f"inkwell_{kind}"
    return {"database": as_user(database_url, role, role), "broker": servers.broker_url_of(kind)}


def settings() -> dict[str, str]:
    """The settings that all services share: short waits, so that more happens."""
    return {
        "INKWELL_QUEUE_PREFIX": PREFIX,
        "INKWELL_SIGNING_KEYS": KEY,
        "INKWELL_FINGERPRINT_KEY": KEY,
        "INKWELL_PUBLISH_TIMEOUT_SECONDS": str(PUBLISH_SECONDS),
        "INKWELL_READ_TIMEOUT_SECONDS": str(READ_SECONDS),
        "INKWELL_WAIT_SECONDS": str(WAIT_SECONDS),
        "INKWELL_DRAIN_DELAY_SECONDS": "0.2",
        "INKWELL_LOGIN_LIMIT": "1000/second",
        "INKWELL_LOGIN_ADDRESS_LIMIT": "1000/second",
        "INKWELL_REGISTRATION_LIMIT": "1000/second",
        "INKWELL_LOG_FORMAT": "json",
    }


async def new_owners(database_url: str) -> list[Owner]:
    """Users in every partition, with their access tokens."""
    names = "select 'owner ' || n, 'owner ' || n from generate_series(1, $1) as n"
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(f"insert into users (name, folded_name) {names} returning id", OWNERS + QUIET_OWNERS)
    await connection.close()
    common = settings() | {"INKWELL_DATABASE_URL": "postgresql://x@x/x", "INKWELL_BROKER_URL": "amqp://x@x/"}
    known = {name.removeprefix("INKWELL_").lower(): value for name, value in common.items()}
    tokens = AccessTokens(GatewaySettings.model_validate(known), Clock())
    return [Owner(row["id"], bearer(tokens.issue(row["id"], 1, frozenset(Scope)))) for row in rows]
