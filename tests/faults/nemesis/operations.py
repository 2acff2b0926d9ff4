"""What operators do while everything runs: corrections, purges, migrations, repartitioning, upgrades and rollbacks."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from dev.backend import ROOT, as_user
from tests.faults.cluster import PARTITIONS, Cluster, Service
from tests.faults.nemesis.broker import are_drained
from tests.faults.nemesis.engine import LONG, SHORT, Fault, Nemesis
from tests.faults.nemesis.postgres import LOCK_SOME_USERS, operator
from tests.faults.nemesis.processes import restart, stop
from tests.support.harness import eventually
from tests.system.versions import PREVIOUS, unpack

FEWER_PARTITIONS = 5
REPARTITION_TRIES, INTERRUPTED = 4, 0.3
"""An interrupted change is completed by running the command again; one in this many is interrupted on purpose."""
CORRECT = """
with locked as (select id from users order by id for update)
update users set updated_date = now() from locked where users.id = locked.id
"""
AGE_TOMBSTONES = """
with owners as (select id from users order by id for update)
update tombstones set deleted_date = now() - interval '40 days', title = null, description = null, erased = true
from owners where owners.id = tombstones.owner_id
"""
PURGE = """
import asyncio
from shared.database import connect
from shared.settings import load_settings
from worker.housekeeping import TOMBSTONE_RETENTION, purge_tombstones
from worker.settings import WorkerSettings

async def purge():
    session = await connect(load_settings(WorkerSettings).database_url, "nemesis")
    await purge_tombstones(session, TOMBSTONE_RETENTION)
    await session.close()

asyncio.run(purge())
"""
REMOVE = """
import asyncio
from shared.database import connect
from shared.settings import load_settings
from worker.housekeeping import remove_deleted_users
from worker.settings import WorkerSettings

async def remove():
    session = await connect(load_settings(WorkerSettings).database_url, "nemesis")
    while await remove_deleted_users(session):
        pass
    await session.close()

asyncio.run(remove())
"""
REMOVED_SECONDS = 60.0
PRUNE = """
import asyncio
from datetime import timedelta
from shared.database import connect
from shared.settings import load_settings
from worker.housekeeping import PRUNE_VERSIONS, prune
from worker.settings import WorkerSettings

async def prune_all():
    settings = load_settings(WorkerSettings)
    session = await connect(settings.database_url, "nemesis")
    retention = timedelta(days=settings.command_retention_days)
    await prune(session, retention, PRUNE_VERSIONS)
    await prune(session, retention)
    await session.close()

asyncio.run(prune_all())
"""
DUMPED = ("users", "notes", "commands", "tombstones", "note_versions")
MIGRATE = ("-m", "alembic", "upgrade", "head")
EXPAND = (
    "alter table notes add column later text default 'later'",
    "alter table commands add column later integer",
    "create index concurrently notes_later_idx on notes (owner_id, later)",
    "create index commands_later_idx on commands (owner_id, later)",
    "alter table users add column later text not null default ''",
)
CONTRACT = (
    "drop index concurrently if exists notes_later_idx",
    *(f"alter table {table} drop column if exists later" for table in ("notes", "commands", "users")),
)


async def users_are_corrected(_: Nemesis, cluster: Cluster[Any]) -> str:
    """An operator's transaction changes the row of every user."""
    async with cluster.servers.postgres_lock:
        await cluster.query(CORRECT)
    return "postgres"


async def tombstones_are_purged(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Makes all tombstones old, and purges them as a worker does once a minute; some users are locked."""
    number = nemesis.pick(0, 1, 3)
    async with cluster.servers.postgres_lock:
        await cluster.query(AGE_TOMBSTONES)
        async with operator(cluster) as session, session.transaction():
            await session.execute(LOCK_SOME_USERS.format(number=number))
            assert await ran(cluster, "worker", "-c", PURGE)
    return f"{number} users locked"


async def deleted_users_are_removed(_: Nemesis, cluster: Cluster[Any]) -> str:
    """Removes everything that deleted users owned, as a worker does once a minute."""
    async with cluster.servers.postgres_lock:
        await eventually(lambda: ran(cluster, "worker", "-c", REMOVE), within_seconds=REMOVED_SECONDS)
    return "postgres"


async def outcomes_are_pruned(_: Nemesis, cluster: Cluster[Any]) -> str:
    """Prunes outcomes and versions as a worker does once a minute; none of them is old enough."""
    async with cluster.servers.postgres_lock:
        assert await ran(cluster, "worker", "-c", PRUNE)
    return "postgres"


async def schema_is_migrated(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Runs the migrations again, then adds columns and indexes as the next ones would, and removes them later."""
    async with cluster.servers.postgres_lock:
        assert await ran(cluster, "migrator", *MIGRATE)
        try:
            await cluster.statements(*EXPAND)
            await asyncio.sleep(nemesis.seconds(SHORT))
        finally:
            await cluster.statements(*CONTRACT)
    return "postgres"


async def database_is_dumped(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """A backup reads everything in one old snapshot, while tables are vacuumed and statistics gathered."""
    async with (
        cluster.servers.postgres_lock,
        operator(cluster) as session,
        session.transaction(isolation="repeatable_read"),
    ):
        for table in DUMPED:
            await session.fetch(f"select count(row({table}.*)::text) from {table}")  # noqa: S608 - no input
            await cluster.query(f"vacuum analyze {table}")
        await asyncio.sleep(nemesis.seconds(LONG))
    return "postgres"


async def partitions_change(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Changes the number of partitions, and changes it back."""
    async with cluster.servers.rabbitmq_lock:
        try:
            await repartition(nemesis, cluster, FEWER_PARTITIONS)
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await repartition(nemesis, cluster, PARTITIONS)
    return f"{FEWER_PARTITIONS} and {PARTITIONS} partitions"


async def repartition(nemesis: Nemesis, cluster: Cluster[Any], partitions: int) -> None:
    """Runs the command until it succeeds, once in a while after it was killed."""
    if nemesis.happens(INTERRUPTED):
        with suppress(TimeoutError):
            async with asyncio.timeout(nemesis.seconds(LONG)):
                await ran(cluster, "worker", "-m", "worker", "repartition", str(partitions))
    for _ in range(REPARTITION_TRIES):
        if await ran(cluster, "worker", "-m", "worker", "repartition", str(partitions)):
            cluster.partitions = partitions
            return
    nemesis.complain(f"I8: the number of partitions could not be changed to {partitions}")


async def gateway_is_of_the_version_before(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Replaces a gateway by one of the previous version for a while, as in the last step of an upgrade."""
    service = nemesis.one_of(cluster.gateways)
    try:
        await restart_from(nemesis, service, source_before(cluster))
        await asyncio.sleep(nemesis.seconds(LONG))
    finally:
        await restart_from(nemesis, service, cluster.tree)
    return service.name


async def release_is_rolled_back(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Goes back to the previous version and then upgrades again, as the manual says: no worker beside a former one.

    Only one worker is of the version before: RabbitMQ 4.3.6 may keep a dead consumer where two of them share.
    """
    before = source_before(cluster)
    try:
        for service in cluster.gateways:
            await restart_from(nemesis, service, before)
        if await are_drained(cluster, range(cluster.partitions)):  # the workers of before need not know every command
            await replace_workers_for_a_while(nemesis, cluster, before)
        else:
            await asyncio.sleep(nemesis.seconds(LONG))
    finally:
        for service in cluster.gateways:
            await restart_from(nemesis, service, cluster.tree)
    return "all"


async def replace_workers_for_a_while(nemesis: Nemesis, cluster: Cluster[Any], tree: Path) -> None:
    """Stops all workers, and runs one from the source in a folder instead."""
    async with AsyncExitStack() as locks:
        for service in cluster.workers:
            await locks.enter_async_context(service.lock)
            await stop(nemesis, service, signal.SIGTERM)
        only = nemesis.one_of(cluster.workers)
        try:
            only.process.folder = tree
            await only.process.start(ready=False)
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await stop(nemesis, only, signal.SIGTERM)
            only.process.folder = cluster.tree
            for service in cluster.workers:
                await service.process.start(ready=False)


async def restart_from(nemesis: Nemesis, service: Service, tree: Path) -> None:
    """Restarts a service from the source in a folder, unless it runs from there."""
    async with service.lock:
        if service.process.folder != tree:
            service.process.folder = tree
            await restart(nemesis, service)


def source_before(cluster: Cluster[Any]) -> Path:
    """The folder with the source of the previous version."""
    folder = cluster.folder / PREVIOUS
    if not folder.exists():
        unpack(PREVIOUS, folder)
    return folder


def has_history() -> bool:
    """Whether the previous version's source is at hand; a shallow clone lacks it."""
    command = ["git", "cat-file", "-e", f"{PREVIOUS}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0


async def ran(cluster: Cluster[Any], role: str, *arguments: str) -> bool:
    """Whether a Python program of the services' source succeeded; it is killed with its caller."""
    worker = cluster.workers[0].process
    servers = cluster.servers.services
    environment = worker.environment | {
        "INKWELL_DATABASE_URL": as_user(cluster.database_url, f"inkwell_{role}", f"inkwell_{role}"),
        "INKWELL_BROKER_URL": servers.broker_url_of("worker"),
    }
    with (cluster.folder / "operator.log").open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=cluster.tree, env=os.environ | environment, stdout=output, stderr=output
        )
    try:
        return await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


FAULTS: dict[str, Fault] = {
    "users-corrected": users_are_corrected,
    "tombstones-purged": tombstones_are_purged,
    "deleted-users-removed": deleted_users_are_removed,
    "outcomes-pruned": outcomes_are_pruned,
    "migration": schema_is_migrated,
    "dump": database_is_dumped,
    "repartition": partitions_change,
}
OF_TWO_VERSIONS: dict[str, Fault] = {
    "gateway-before": gateway_is_of_the_version_before,
    "rollback": release_is_rolled_back,
}
