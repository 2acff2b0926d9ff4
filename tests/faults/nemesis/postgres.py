"""Postgres ends, hangs, fills its disk, or refuses what the services ask of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from tests.faults.cluster import Cluster
from tests.faults.nemesis.engine import LONG, SHORT, Fault, Nemesis
from tests.faults.servers import Servers, SinglePostgres
from tests.support.harness import eventually

START_SECONDS = 60.0
OF_INKWELL = "usename in ('inkwell_gateway', 'inkwell_worker')"
END_SESSIONS = f"select pg_terminate_backend(pid) from pg_stat_activity where {OF_INKWELL}"  # noqa: S608 - no input
CANCEL_STATEMENTS = f"""
select pg_cancel_backend(pid) from pg_stat_activity where {OF_INKWELL} and state = 'active'
"""  # noqa: S608 - no input
CANCEL_EVERY_SECONDS = 0.05
RIGHTS = {"gateway": ("select", "notes"), "worker": ("insert, update", "commands")}
"""What a role loses: the right, and the table."""
COLUMNS = """
select string_agg(quote_ident(column_name), ', ') from information_schema.column_privileges
where grantee = '{role}' and table_name = '{table}' and privilege_type = 'SELECT'
"""
CONNECTION_LIMIT = "select rolconnlimit from pg_roles where rolname = '{role}'"
LOCK_SOME_USERS = "select id from users where id in (select id from users order by random() limit {number}) for update"
TABLES = ("notes", "commands", "users")


async def postgres_restarts(_: Nemesis, cluster: Cluster[Any]) -> str:
    """Restarts the server properly."""
    async with cluster.servers.postgres_lock:
        await cluster.servers.postgres.act("restart", timeout=10)
        await postgres_answers(cluster)
    return "postgres"


async def postgres_is_killed(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Kills the server, and starts it some seconds later."""
    async with cluster.servers.postgres_lock:
        await cluster.servers.postgres.act("kill")
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await cluster.servers.postgres.act("start")
        await postgres_answers(cluster)
    return "postgres"


async def postgres_is_paused(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Freezes the server for some seconds."""
    async with cluster.servers.postgres_lock:
        await cluster.servers.postgres.act("pause")
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await cluster.servers.postgres.act("unpause")
    return "postgres"


async def postgres_answers(cluster: Cluster[Any]) -> None:
    """Returns when the server has started; its start belongs to the fault."""

    async def answers() -> bool:
        try:
            return bool(await cluster.query("select 1"))
        except (asyncpg.PostgresError, OSError, TimeoutError):
            return False

    await eventually(answers, within_seconds=START_SECONDS, every_seconds=0.1)


async def disk_is_full(nemesis: Nemesis, cluster: Cluster[Servers[SinglePostgres, Any]]) -> str:
    """Leaves no space on the disk with the data and the WAL; Postgres may end, and is then started again."""
    postgres = cluster.servers.postgres
    async with postgres.lock:
        await asyncio.to_thread(postgres.disk.fill)
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await asyncio.to_thread(postgres.disk.free)
            await postgres.act("start")  # does nothing if it runs
        await postgres_answers(cluster)
    return "postgres"


async def is_read_only(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Makes the server refuse writes in new sessions, and ends those there are, as some managed servers do."""
    async with cluster.servers.postgres_lock:
        await cluster.query("alter system set default_transaction_read_only = on")
        try:
            await cluster.query("select pg_reload_conf()")
            await cluster.query(END_SESSIONS)
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await cluster.query("alter system reset default_transaction_read_only")
            await cluster.query("select pg_reload_conf()")
            await cluster.query(END_SESSIONS)
    return "postgres"


async def rights_are_revoked(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Takes a right on a table from the gateways' or the workers' role, and gives it back."""
    kind = nemesis.pick(*RIGHTS)
    right, table = RIGHTS[kind]
    role = f"inkwell_{kind}"
    async with cluster.servers.postgres_lock:
        [(columns,)] = await cluster.query(COLUMNS.format(role=role, table=table))
        scope = f" ({columns})" if right == "select" else ""
        await cluster.query(f"revoke {right} on {table} from {role}")  # of each column, too
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await cluster.query(f"grant {right}{scope} on {table} to {role}")
    return role


async def connections_are_refused(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Lets a role have no session, as if others had taken them all, and ends those there are."""
    role = f"inkwell_{nemesis.pick(*RIGHTS)}"
    async with cluster.servers.postgres_lock:
        [(limit,)] = await cluster.query(CONNECTION_LIMIT.format(role=role))
        await cluster.query(f"alter role {role} connection limit 0")
        try:
            await cluster.query(END_SESSIONS)
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await cluster.query(f"alter role {role} connection limit {limit}")
    return role


async def sessions_are_ended(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Ends every session of Inkwell, several times."""
    async with cluster.servers.postgres_lock:
        for _ in range(nemesis.pick(1, 3, 6)):
            await cluster.query(END_SESSIONS)
            await asyncio.sleep(nemesis.seconds(SHORT))
    return "postgres"


async def statements_are_cancelled(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Cancels whatever statement of Inkwell is running, again and again."""
    ends = asyncio.get_running_loop().time() + nemesis.seconds(LONG)
    async with cluster.servers.postgres_lock, operator(cluster) as session:
        while asyncio.get_running_loop().time() < ends:
            await session.execute(CANCEL_STATEMENTS)
            await asyncio.sleep(CANCEL_EVERY_SECONDS)
    return "postgres"


async def owners_are_locked(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """An operator's open transaction holds the rows of some users."""
    number = nemesis.pick(1, 3)
    async with cluster.servers.postgres_lock, operator(cluster) as session, session.transaction():
        await session.execute(LOCK_SOME_USERS.format(number=number))
        await asyncio.sleep(nemesis.seconds(LONG))
    return f"{number} users"


async def table_is_locked(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """An operator's open transaction holds a whole table, as some changes of a schema do."""
    table = nemesis.pick(*TABLES)
    async with cluster.servers.postgres_lock, operator(cluster) as session, session.transaction():
        await session.execute(f"lock table {table} in access exclusive mode")
        await asyncio.sleep(nemesis.seconds(LONG))
    return str(table)


async def deadlocks_occur(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """An operator locks users in the opposite order of the workers, again and again."""
    ends = asyncio.get_running_loop().time() + nemesis.seconds(LONG)
    async with cluster.servers.postgres_lock, operator(cluster) as session:
        while asyncio.get_running_loop().time() < ends:
            try:
                async with session.transaction():
                    for row in await session.fetch("select id from users order by id desc"):
                        await session.execute("select from users where id = $1 for update", row["id"])
                        await asyncio.sleep(0.01)
            except asyncpg.DeadlockDetectedError:
                pass  # or a worker's statement has failed instead
    return "users"


@asynccontextmanager
async def operator(cluster: Cluster[Any]) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """An operator's session, which ends with the block, and its transaction with it."""
    session = await asyncpg.connect(cluster.database_url, timeout=10, server_settings={"deadlock_timeout": "200ms"})
    try:
        yield session
    finally:
        session.terminate()


FAULTS: dict[str, Fault] = {
    "postgres-restart": postgres_restarts,
    "postgres-kill": postgres_is_killed,
    "postgres-pause": postgres_is_paused,
    "postgres-read-only": is_read_only,
    "rights-revoked": rights_are_revoked,
    "connections-refused": connections_are_refused,
    "sessions-ended": sessions_are_ended,
    "statements-cancelled": statements_are_cancelled,
    "owner-locked": owners_are_locked,
    "table-locked": table_is_locked,
    "deadlocks": deadlocks_occur,
}
