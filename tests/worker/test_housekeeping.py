"""Which outcomes are pruned, when, and by which worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from asyncpg import Connection, Record
from sqlalchemy import make_url

from dev.backend import Services
from shared.connections import Connections
from shared.contracts import CreateToken, DeleteUser, encode_batch, encode_command
from shared.messaging import Topology
from tests.support import harness
from tests.support.commands import DIGEST, attributes, create, delete
from tests.support.harness import eventually
from tests.support.proxy import proxy_to
from worker import housekeeping
from worker.apply import apply_batch, record_failure
from worker.attempts import mark_attempt
from worker.housekeeping import Housekeeping, prune, purge_tombstones
from worker.settings import WorkerSettings

RETENTION = timedelta(days=7)
INTERVAL_SECONDS = 0.1


@asynccontextmanager
async def tidying(settings: WorkerSettings) -> AsyncIterator[None]:
    running = asyncio.create_task(Housekeeping(settings, INTERVAL_SECONDS).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def add(database: "Connection[Record]", status: str, age: timedelta, count: int = 1) -> None:
    """Rows decided this long ago."""
    await database.execute(
        "insert into commands (id, status, http_status, decided_at) "
        "select gen_random_uuid(), $1, 200, now() - $2::interval from generate_series(1, $3)",
        status,
        age,
        count,
    )


async def has(database: "Connection[Record]", rows: int) -> bool:
    return bool(await database.fetchval("select count(*) = $1 from commands", rows))


async def test_old_outcomes_are_pruned_and_young_and_failed_ones_stay(
    worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    old, young = RETENTION + timedelta(minutes=1), RETENTION - timedelta(minutes=1)
    for status in ("applied", "rejected", "failed"):
        await add(database, status, old)
        await add(database, status, young)

    async with tidying(worker_settings):
        await eventually(lambda: has(database, 4))
        await asyncio.sleep(3 * INTERVAL_SECONDS)

    left = await database.fetch(
        "select status, decided_at < now() - $1::interval from commands order by 1, 2", RETENTION
    )
    assert [tuple(row) for row in left] == [
        ("applied", False),
        ("failed", False),
        ("failed", True),
        ("rejected", False),
    ]


async def test_command_that_was_decided_long_ago_and_not_acknowledged_finds_its_outcome_at_the_next_start(
    servers: Services, worker_settings: WorkerSettings, connections: Connections, database: "Connection[Record]"
) -> None:
    command, next_one, topology = create("decided"), create("next"), Topology.of(worker_settings)
    await apply_batch(connections, [command])
    await database.execute("update commands set decided_at = now() - interval '8 days'")
    await harness.declare(servers, topology)
    async with await aio_pika.connect(servers.broker_url) as connection:
        exchange = await (await connection.channel()).get_exchange(topology.commands_exchange)
        message = aio_pika.Message(encode_batch(map(encode_command, (command, next_one))))
        await exchange.publish(message, topology.command_queue(topology.partition_of(command.owner)))

    pruning = asyncio.create_task(Housekeeping(worker_settings).run())
    await asyncio.sleep(1)  # during which it would prune
    async with harness.worker(worker_settings):
        await eventually(lambda: database.fetchval("select count(*) from notes where title = 'next'"))
    pruning.cancel()

    assert await database.fetchval("select count(*) from notes where title = 'decided'") == 1


async def test_many_are_pruned_in_small_steps_whether_or_not_they_are_of_one_time(
    connections: Connections, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "ROWS_PER_STEP", 10)
    await database.execute("create table steps (rows int)")
    await database.execute("grant insert on steps to inkwell_worker")
    await database.execute(
        "create function count_step() returns trigger language plpgsql as "
        "$$ begin insert into steps select count(*) from gone; return null; end $$; "
        "create trigger count_step after delete on commands referencing old table as gone "
        "for each statement execute function count_step()"
    )
    await add(database, "applied", timedelta(days=8), 35)
    for days in range(9, 40):
        await add(database, "rejected", timedelta(days=days))

    async with connections.acquire() as session:
        assert await prune(session, RETENTION) == 66

    assert await has(database, 0)
    assert [row["rows"] for row in await database.fetch("select rows from steps")] == [10] * 6 + [6]


async def test_one_of_two_workers_prunes_and_the_other_takes_over(
    worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    async with AsyncExitStack() as second:
        async with tidying(worker_settings):
            first_pid = await eventually(lambda: pruner(database))
            await second.enter_async_context(tidying(worker_settings))
            await asyncio.sleep(5 * INTERVAL_SECONDS)
            assert await pruner(database) == first_pid

        await eventually(lambda: other_pruner(database, first_pid))
        await add(database, "applied", timedelta(days=8))
        await eventually(lambda: has(database, 0))


async def test_comes_back_after_postgres_was_away(
    worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    url = make_url(str(worker_settings.database_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5432) as link:
        moved = url.set(host="127.0.0.1", port=link.port).render_as_string(hide_password=False)
        settings = WorkerSettings.model_validate(worker_settings.model_dump() | {"database_url": moved})
        async with tidying(settings):
            await eventually(lambda: pruner(database))
            await link.cut()
            await add(database, "applied", timedelta(days=8))
            await asyncio.sleep(3 * INTERVAL_SECONDS)
            assert await has(database, 1)
            await link.start()
            await eventually(lambda: has(database, 0))


async def test_marks_of_decided_commands_are_forgotten_but_not_of_those_that_may_still_kill(
    worker_settings: WorkerSettings, connections: Connections, database: "Connection[Record]"
) -> None:
    applied, failed, undecided = create(), create(), create()
    await apply_batch(connections, [applied])
    await record_failure(connections, failed, "worker_killed")
    for command in (applied, failed, undecided):
        await mark_attempt(connections, command.id, uuid4())

    async with tidying(worker_settings):
        await eventually(lambda: has_marks(database, 2))

    marked = {row[0] for row in await database.fetch("select command_id from attempt_marks")}
    assert marked == {failed.id, undecided.id}


async def pruner(database: "Connection[Record]") -> int | None:
    """The backend that holds the lock; fails if there are two."""
    holders = await database.fetch(
        "select pid from pg_locks where locktype = 'advisory' and granted "
        "and database = (select oid from pg_database where datname = current_database())"
    )
    assert len(holders) <= 1
    return holders[0]["pid"] if holders else None


async def other_pruner(database: "Connection[Record]", pid: int) -> bool:
    return await pruner(database) not in (None, pid)


async def has_marks(database: "Connection[Record]", marks: int) -> bool:
    return bool(await database.fetchval("select count(*) = $1 from attempt_marks", marks))


async def test_nothing_is_left_of_a_deleted_user(
    connections: Connections, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    await database.execute("insert into users (name, folded_name) values ('Ada', 'ada'), ('Bob', 'bob')")
    ada, bob = [row["id"] for row in await database.fetch("select id from users where name is not null order by 1")]
    for owner in (ada, bob):
        await apply_batch(connections, [create(str(number), owner=owner) for number in range(1500)])
        await apply_batch(connections, [token(owner=owner)])
        await record_failure(connections, create("secret", owner=owner), "handler_error")

    for owner, note in await database.fetch("select owner_id, max(id) from notes group by owner_id"):
        await apply_batch(connections, [delete(note, owner=owner)])
    await apply_batch(connections, [DeleteUser.model_validate(attributes() | {"owner": ada, "data": {}})])
    async with tidying(worker_settings):
        await eventually(lambda: is_gone(database, ada))

    for table in ("notes", "tombstones", "personal_tokens"):
        assert await owners_in(database, table) == {bob}
    assert await database.fetchval("select count(*) from commands where owner_id = $1", ada) == 1504
    assert not await database.fetch(
        "select * from commands where owner_id = $1 and (body is not null or command is not null)", ada
    )
    assert await database.fetchval("select count(body) from commands where owner_id = $1", bob) == 1501


async def test_old_tombstones_are_purged_in_small_steps_and_their_owners_remember_how_far(
    connections: Connections, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "ROWS_PER_STEP", 10)
    owners = [1, await database.fetchval("insert into users default values returning id")]
    for owner in owners:
        created = await apply_batch(connections, [create(owner=owner) for _ in range(20)])
        await apply_batch(connections, [delete(outcome.note_id or 0, owner=owner) for outcome in created])
    await database.execute("update tombstones set deleted_date = now() - interval '31 days' where mod_revision < 36")

    async with connections.acquire() as session:
        assert await purge_tombstones(session, timedelta(days=30)) == 30

    assert {row[0] for row in await database.fetch("select mod_revision from tombstones")} == {36, 37, 38, 39, 40}
    rows = await database.fetch("select purged_revision, revision > 40 from users order by id")
    assert [tuple(row) for row in rows] == [(35, True), (35, True)]


async def test_late_command_of_a_deleted_user_leaves_no_text(
    connections: Connections, database: "Connection[Record]"
) -> None:
    late = create("secret", owner=99, time=datetime.now(UTC) - timedelta(days=4), may_expire=True)

    [outcome] = await apply_batch(connections, [late], timedelta(days=3))

    assert (outcome.http_status, outcome.reason) == (401, "credentials_outdated")
    assert not await database.fetchval("select count(command) from commands")


async def test_personal_tokens_are_forgotten_when_they_have_long_expired(
    connections: Connections, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [token(), token()])
    await database.execute(
        "update personal_tokens set expires_date = now() - interval '8 days' "
        "where id = (select min(id::text)::uuid from personal_tokens)"
    )

    async with tidying(worker_settings):
        await eventually(lambda: has_tokens(database, 1))


def token(**envelope: Any) -> CreateToken:
    data = {"name": "backup", "scopes": ["notes:read"], "lifetime_days": 1, "secret_digest": DIGEST}
    return CreateToken.model_validate(attributes() | envelope | {"data": data})


async def is_gone(database: "Connection[Record]", user: int) -> bool:
    return not await database.fetchval("select exists (select from users where id = $1)", user)


async def has_tokens(database: "Connection[Record]", count: int) -> bool:
    return bool(await database.fetchval("select count(*) = $1 from personal_tokens", count))


async def owners_in(database: "Connection[Record]", table: str) -> set[int]:
    return {row["owner_id"] for row in await database.fetch(f"select distinct owner_id from {table}")}  # noqa: S608
