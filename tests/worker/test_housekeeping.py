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
from shared.contracts import (
    Command,
    CreateItem,
    CreateToken,
    DeleteItem,
    DeleteUser,
    PatchItem,
    encode_batch,
    encode_command,
)
from shared.topology import Topology
from tests.support import harness
from tests.support.commands import DIGEST, attributes, create, delete, patch, purge, replace, restore, several
from tests.support.harness import eventually
from tests.support.proxy import proxy_to
from worker import housekeeping
from worker.apply import ApplyOptions, apply_batch, record_failure
from worker.attempts import mark_attempt
from worker.housekeeping import Housekeeping, erase_copies, erase_old_trash, prune, purge_tombstones
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
        nibs = [CreateItem(title="Nib", description="")] * 600
        await apply_batch(
            connections, [delete(note, owner=owner), several(*nibs, owner=owner), several(*nibs, owner=owner)]
        )
    await apply_batch(connections, [DeleteUser.model_validate(attributes() | {"owner": ada, "data": {}})])
    async with tidying(worker_settings):
        await eventually(lambda: is_gone(database, ada))

    for table in ("notes", "tombstones", "note_versions", "personal_tokens"):
        assert await owners_in(database, table) == {bob}
    assert await database.fetchval("select count(*) from commands where owner_id = $1", ada) == 1506
    assert not await database.fetch(
        "select * from commands where owner_id = $1 and (body is not null or command is not null)", ada
    )
    assert await database.fetchval("select count(body) from commands where owner_id = $1", bob) == 1503


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
        assert await purge_tombstones(session, timedelta(days=30)) == 0  # their text is not erased yet
        assert await erase_old_trash(session, timedelta(days=30)) == 30
        assert await erase_copies(session) == 30
        assert await purge_tombstones(session, timedelta(days=30)) == 30

    assert {row[0] for row in await database.fetch("select mod_revision from tombstones")} == {36, 37, 38, 39, 40}
    rows = await database.fetch("select purged_revision, revision > 40 from users order by id")
    assert [tuple(row) for row in rows] == [(35, True), (35, True)]


TEXTS = """
select title from notes union all select title from tombstones where title is not null
union all select body from note_versions union all select body from commands where body is not null
"""


async def texts(database: "Connection[Record]") -> str:
    """Everything that Postgres holds of the notes' texts."""
    return " ".join(row[0] for row in await database.fetch(TEXTS))


async def write_everywhere(connections: Connections) -> None:
    """Note 1 has a text in each place that can hold one, and is deleted; note 2 is live."""
    await apply_batch(connections, [create("secret"), create("kept"), replace(1, "secret, replaced")])
    await apply_batch(
        connections, [several(PatchItem(note_id=1, title="secret, patched"), PatchItem(note_id=2, title="kept 2"))]
    )
    await apply_batch(connections, [several(PatchItem(note_id=1, title="secret at last"), DeleteItem(note_id=1))])


async def test_purged_note_is_erased_from_everywhere_and_its_neighbor_from_nowhere(
    connections: Connections, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    await write_everywhere(connections)
    assert (await texts(database)).count("secret") == 5  # three versions of one write, and two of several

    await apply_batch(connections, [purge(1)])
    async with tidying(worker_settings):
        await eventually(lambda: is_erased(database))

    assert "secret" not in await texts(database)
    assert (await texts(database)).count("kept") == 3
    purged = await database.fetchrow("select title, description, mod_revision from tombstones")
    assert tuple(purged or ()) == (None, None, 5)
    assert await database.fetchval("select revision from users where id = 1") == 6


async def test_note_that_is_created_deleted_and_purged_in_one_batch_is_erased_as_well(
    connections: Connections, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    [outcome] = await apply_batch(connections, [create("first")])
    await apply_batch(
        connections, [patch(1, "secret"), delete(1), restore(1), replace(1, "secret"), delete(1), purge(1)]
    )

    async with tidying(worker_settings):
        await eventually(lambda: is_erased(database))

    assert outcome.body
    assert await texts(database) == ""


@pytest.mark.parametrize(("days", "left"), [(5, 1), (7, 0)])
async def test_trash_is_erased_after_its_retention_and_the_tombstone_stays(
    connections: Connections, worker_settings: WorkerSettings, database: "Connection[Record]", days: int, left: int
) -> None:
    settings = worker_settings.model_copy(update={"trash_retention_days": 6})
    await write_everywhere(connections)
    await database.execute("update tombstones set deleted_date = now() - $1::interval", timedelta(days=days))

    async with connections.acquire() as session:
        await Housekeeping(settings)._clean_up(session)

    assert ("secret" in await texts(database)) is bool(left)
    assert await database.fetchval("select count(title) from tombstones") == left
    assert await database.fetchval("select count(*) from tombstones") == 1


@pytest.mark.parametrize(("days", "left"), [((6, 31), 0), ((6, 29), 1), ((60, 59), 1), ((60, 61), 0)])
async def test_tombstone_stays_for_thirty_days_or_the_retention_if_that_is_longer(
    connections: Connections,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    days: tuple[int, int],
    left: int,
) -> None:
    retention, age = days
    settings = worker_settings.model_copy(update={"trash_retention_days": retention})
    await write_everywhere(connections)
    await database.execute("update tombstones set deleted_date = now() - $1::interval", timedelta(days=age))

    async with connections.acquire() as session:
        await Housekeeping(settings)._clean_up(session)

    assert await database.fetchval("select count(*) from tombstones") == left
    assert await database.fetchval("select purged_revision > 0 from users where id = 1") is (left == 0)


async def test_without_trash_a_deletion_keeps_no_text_and_cannot_be_undone(
    connections: Connections, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create("secret"), create("secret"), create("kept")])

    batch: list[Command] = [delete(1), restore(1), delete(2), purge(2)]
    outcomes = await apply_batch(connections, batch, ApplyOptions(keeps_trash=False))
    outcomes += await apply_batch(connections, [restore(2)], ApplyOptions(keeps_trash=False))

    assert [outcome.http_status for outcome in outcomes] == [204, 404, 204, 404, 404]
    assert await database.fetchval("select count(*) - count(title) from tombstones") == 2
    async with tidying(worker_settings):
        await eventually(lambda: is_erased(database))
    assert "secret" not in await texts(database)


async def test_many_versions_are_erased_in_small_steps(
    connections: Connections, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "ROWS_PER_STEP", 10)
    await apply_batch(connections, [create("0") for _ in range(25)])
    for number in range(3):
        items = [PatchItem(note_id=note, title=f"new {number}") for note in range(1, 26)]
        await apply_batch(connections, [several(*items), *(patch(note, f"again {number}") for note in range(1, 26))])
    await apply_batch(connections, [delete(note) for note in range(1, 26)])
    await apply_batch(connections, [purge(note) for note in range(1, 25)])

    async with connections.acquire() as session:
        assert await erase_copies(session) == 24

    assert await database.fetchval("select count(*) from note_versions where note_id < 25") == 0
    assert await database.fetchval("select count(*) from note_versions where note_id = 25") == 3
    assert await database.fetchval("select count(*) from commands where note_id = 25 and body is not null") == 4
    assert await database.fetchval("select count(*) from commands where note_id < 25 and body is not null") == 0


async def test_old_versions_are_pruned_as_outcomes_are(
    connections: Connections, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [several(*[CreateItem(title="Ink", description="")] * 2)])
    await database.execute("update note_versions set stored_date = now() - interval '8 days' where note_id = 1")

    async with tidying(worker_settings):
        await eventually(lambda: database.fetchval("select count(*) = 1 from note_versions"))

    assert await database.fetchval("select note_id from note_versions") == 2


async def is_erased(database: "Connection[Record]") -> bool:
    return bool(await database.fetchval("select bool_and(erased) from tombstones"))


async def test_late_command_of_a_deleted_user_leaves_no_text(
    connections: Connections, database: "Connection[Record]"
) -> None:
    late = create("secret", owner=99, time=datetime.now(UTC) - timedelta(days=4), may_expire=True)

    [outcome] = await apply_batch(connections, [late], ApplyOptions(timedelta(days=3)))

    assert (outcome.http_status, outcome.reason) == (401, "credentials_outdated")
    assert not await database.fetchval("select count(command) from commands")


async def test_personal_tokens_are_forgotten_when_they_have_long_expired(
    connections: Connections, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    ada = await database.fetchval("insert into users (name, folded_name) values ('Ada', 'ada') returning id")
    await apply_batch(connections, [token(owner=ada), token(owner=ada)])
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
