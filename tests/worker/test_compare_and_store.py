"""Nothing is locked between a batch's read and its store: the second writer writes nothing and reads again."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from uuid import uuid4

import asyncpg
import pytest
from asyncpg import Connection, Record
from asyncpg.connection import LoggedQuery

from shared.connections import Connections
from shared.contracts import BadCommand, Command, CreateItem
from tests.support import harness
from tests.support.applying import apply_with_others
from tests.support.commands import create, delete, patch, purge, replace, restore, several
from tests.support.harness import eventually
from worker.apply import apply_batch, apply_in_transaction, record_failure
from worker.cache import IDS_AHEAD, Cache
from worker.sessions import SESSION_SETTINGS
from worker.settings import WorkerSettings
from worker.statements import READ, STORE, STORE_CREATIONS


@pytest.fixture
def one(worker_settings: WorkerSettings) -> Iterator[Connections]:
    """The only connection of a worker."""
    with harness.connected(worker_settings, "test") as connections:
        yield connections


@pytest.fixture
def other(worker_settings: WorkerSettings) -> Iterator[Connections]:
    """The connection of another worker."""
    with harness.connected(worker_settings, "test") as connections:
        yield connections


async def statements(connections: Connections, batch: Sequence[Command | BadCommand], cache: Cache) -> list[str]:
    """The statements that a batch sends to Postgres."""
    seen: list[LoggedQuery] = []
    async with connections.acquire() as session:
        session.add_query_logger(seen.append)
    await apply_batch(connections, batch, cache=cache)
    await asyncio.sleep(0)  # the driver calls its loggers slightly later
    async with connections.acquire() as session:
        session.remove_query_logger(seen.append)
    return [logged.query for logged in seen]


async def notes(database: "Connection[Record]") -> list[tuple[str, int]]:
    return [tuple(row) for row in await database.fetch("select title, version from notes order by id")]


async def revision(database: "Connection[Record]") -> int:
    return int(await database.fetchval("select revision from users where id = 1"))


@asynccontextmanager
async def waiting_for(database: "Connection[Record]", correction: str) -> AsyncIterator[None]:
    """Correct a row by hand, and commit once the block's batch waits for its lock."""
    correcting = database.transaction()
    await correcting.start()
    await database.execute(correction)
    yield
    await eventually(lambda: is_somebody_waiting(database))
    await correcting.commit()


async def is_somebody_waiting(database: "Connection[Record]") -> bool:
    return bool(await database.fetchval("select exists (select from pg_locks where not granted)"))


@pytest.mark.parametrize("size", [1, 500])
async def test_creations_by_known_owners_take_one_statement(one: Connections, size: int) -> None:
    cache = Cache(IDS_AHEAD)
    await apply_batch(one, [create() for _ in range(size)], cache=cache)

    assert await statements(one, [create() for _ in range(size)], cache) == [STORE_CREATIONS.sql]


@pytest.mark.parametrize("size", [1, 100])
async def test_every_other_batch_of_notes_takes_two_statements(one: Connections, size: int) -> None:
    cache = Cache(IDS_AHEAD)
    await apply_batch(one, [create() for _ in range(size)], cache=cache)

    batch = [
        each for note_id in range(1, size + 1) for each in (create(), replace(note_id), patch(999), delete(note_id))
    ]
    assert await statements(one, batch, cache) == [READ.sql, STORE.sql]
    assert await statements(one, [create(), BadCommand(uuid4(), "unknown_type", "{}")], Cache()) == [
        READ.sql,
        STORE_CREATIONS.sql,
    ]


@pytest.mark.parametrize("size", [1, 500])
async def test_conflict_takes_two_statements_more(one: Connections, other: Connections, size: int) -> None:
    cache = Cache(IDS_AHEAD)
    await apply_batch(one, [create() for _ in range(size)], cache=cache)
    await apply_batch(other, [create()])

    batch = [create() for _ in range(size)]
    assert await statements(one, batch, cache) == [STORE_CREATIONS.sql, READ.sql, STORE_CREATIONS.sql]


async def test_batch_whose_outcomes_are_all_known_takes_one_statement(one: Connections) -> None:
    commands = [create(), create()]
    await apply_batch(one, commands)

    assert await statements(one, commands, Cache()) == [READ.sql]


async def test_two_workers_that_know_the_same_owner_lose_and_double_nothing(
    one: Connections, other: Connections, database: "Connection[Record]"
) -> None:
    caches = (Cache(IDS_AHEAD), Cache(IDS_AHEAD))

    async def work(connections: Connections, cache: Cache) -> None:
        for _ in range(30):
            outcomes = await apply_with_others(connections, [create(), create()], cache)
            assert [outcome.status for outcome in outcomes] == ["applied"] * 2

    await asyncio.gather(work(one, caches[0]), work(other, caches[1]))

    assert await revision(database) == 120
    assert await database.fetchval("select count(distinct mod_revision) from notes") == 120


async def test_rejection_raises_the_revision_as_any_decision_does(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [delete(999), create(credentials_version=7), BadCommand(uuid4(), "unknown_type", "{}")])
    await record_failure(one, create(), "handler_error")
    await apply_in_transaction(one, [patch(999)])

    assert await revision(database) == 4


async def test_batch_of_a_known_and_a_new_command_has_the_effect_of_the_new_one(
    one: Connections, database: "Connection[Record]"
) -> None:
    cache, known = Cache(IDS_AHEAD), create("known")
    [first] = await apply_batch(one, [known], cache=cache)

    again, new = await apply_batch(one, [known, create("new")], cache=cache)

    assert again == first
    assert new.status == "applied"
    assert await notes(database) == [("known", 1), ("new", 1)]


async def test_owner_whom_an_operator_signs_out_is_rejected_though_the_worker_knew_better(
    one: Connections, database: "Connection[Record]"
) -> None:
    cache = Cache(IDS_AHEAD)
    await apply_batch(one, [create()], cache=cache)
    await database.execute("update users set credentials_version = credentials_version + 1")

    [outcome] = await apply_batch(one, [create()], cache=cache)

    assert (outcome.http_status, outcome.reason) == (401, "credentials_outdated")
    assert len(await notes(database)) == 1


async def test_owner_who_is_deleted_meanwhile_is_rejected(one: Connections, database: "Connection[Record]") -> None:
    cache = Cache(IDS_AHEAD)
    await apply_batch(one, [create()], cache=cache)
    await database.execute("update users set deleted_date = now()")

    [outcome] = await apply_batch(one, [create()], cache=cache)

    assert (outcome.http_status, outcome.reason) == (401, "credentials_outdated")


@pytest.mark.parametrize(("by_hand", "corrected"), [(2, 3), (3, 3), (1000, 1000)])
async def test_revision_that_is_corrected_by_hand_holds_up_nothing(
    one: Connections, database: "Connection[Record]", by_hand: int, corrected: int
) -> None:
    cache = Cache(IDS_AHEAD)
    await apply_batch(one, [create(), create()], cache=cache)
    await database.execute("update users set revision = $1", by_hand)

    [outcome] = await apply_batch(one, [patch(1, "changed")], cache=cache)
    await apply_batch(one, [create()], cache=cache)

    assert outcome.status == "applied"
    assert await revision(database) == corrected + 2


async def test_owner_whose_note_has_a_later_revision_catches_up(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create(), create()])
    await database.execute("update notes set mod_revision = 3 where id = 1")
    await database.execute("update notes set mod_revision = 9 where id = 2")

    for note_id in (1, 2, 2):
        [outcome] = await apply_batch(one, [patch(note_id, f"{note_id}")])
        assert outcome.status == "applied"

    assert await revision(database) == 11
    assert [row[0] for row in await database.fetch("select mod_revision from notes order by id")] == [4, 10]


async def test_note_that_is_corrected_by_hand_between_read_and_store_is_changed_in_its_corrected_form(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create("Ink", "Blue")])

    async with waiting_for(database, "update notes set description = 'by hand', version = version + 1"):
        applying = asyncio.create_task(apply_with_others(one, [patch(1, "Pen")]))
    [outcome] = await applying

    assert outcome.note_version == 3
    assert tuple(*await database.fetch("select title, description from notes")) == ("Pen", "by hand")


async def test_note_that_is_deleted_by_hand_between_read_and_store_is_not_found(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create("Ink")])

    async with waiting_for(database, "delete from notes"):
        applying = asyncio.create_task(apply_with_others(one, [patch(1, "Pen"), create("Nib")]))

    assert [outcome.http_status for outcome in await applying] == [404, 201]
    assert await notes(database) == [("Nib", 1)]


async def test_workers_with_one_block_of_ids_lose_and_overwrite_nothing(
    one: Connections, other: Connections, database: "Connection[Record]"
) -> None:
    first, second = Cache(IDS_AHEAD), Cache(IDS_AHEAD)
    await apply_batch(one, [create("1")], cache=first)
    await database.execute("select setval('notes_id_seq', 1, false)")
    await apply_batch(other, [create("2")], cache=second)

    for number in range(3, 13):
        mine = (one, first) if number % 2 else (other, second)
        [outcome] = await apply_batch(mine[0], [create(str(number))], cache=mine[1])
        assert outcome.status == "applied"

    assert sorted(int(title) for title, _ in await notes(database)) == list(range(1, 13))


async def test_notes_are_created_after_a_restore_of_a_sequence_that_lags_behind(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create() for _ in range(100)])
    await database.execute("select setval('notes_id_seq', 1, false)")

    outcomes = await apply_batch(one, [create(), create()])

    assert [outcome.note_id for outcome in outcomes] == [101, 102]


async def test_ids_that_are_left_of_a_lost_connection_are_not_used(one: Connections) -> None:
    cache = Cache(IDS_AHEAD)
    await apply_batch(one, [create()], cache=cache)
    one.close()

    [outcome] = await apply_batch(one, [create()], cache=cache)

    assert outcome.note_id == IDS_AHEAD + 2


async def test_violation_of_another_key_is_not_taken_for_a_conflict(
    one: Connections, database: "Connection[Record]"
) -> None:
    await database.execute("create unique index operators_idea on notes (title)")
    await apply_batch(one, [create("Ink")])

    with pytest.raises(asyncpg.UniqueViolationError, match="operators_idea"):
        await apply_batch(one, [create("Ink")])


async def test_owners_of_a_worker_that_knows_too_many_are_forgotten(
    one: Connections, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cache.MAX_OWNERS", 3)
    await database.execute("insert into users (name) select 'Ada' from generate_series(1, 9)")
    cache = Cache(IDS_AHEAD)
    for owner in range(1, 11):
        await apply_batch(one, [create(owner=owner)], cache=cache)

    assert await statements(one, [create(owner=10)], cache) == [STORE_CREATIONS.sql]
    assert len(await statements(one, [create(owner=1)], cache)) == 2


@pytest.mark.parametrize("statistics", ["analyze", "select"])
async def test_plans_that_were_made_for_small_tables_find_their_rows_in_large_ones(
    one: Connections, database: "Connection[Record]", statistics: str
) -> None:
    await database.execute("insert into users (name) select 'Ada' from generate_series(1, 9)")
    await database.execute(statistics)
    cache = Cache(IDS_AHEAD)

    async def fastest_of(batches: int) -> float:
        times = []
        for number in range(batches):
            owner = 1 + number % 10
            started = asyncio.get_running_loop().time()
            [created] = await apply_batch(one, [create(owner=owner)], cache=cache)
            await apply_batch(one, [patch(created.note_id or 0, "changed", owner=owner)], cache=cache)
            for change in (delete, restore, delete, purge):
                [changed] = await apply_batch(one, [change(created.note_id or 0, owner=owner)], cache=cache)
                assert changed.status == "applied"
            await apply_batch(one, [several(CreateItem(title="Ink", description=""), owner=owner)], cache=cache)
            times.append(asyncio.get_running_loop().time() - started)
        return min(times)

    await fastest_of(20)
    await database.execute("insert into users (name) select 'Ada' from generate_series(1, 500000)")
    await database.execute(
        "insert into commands (id, status, http_status) "
        "select gen_random_uuid(), 'applied', 200 from generate_series(1, 200000)"
    )
    await database.execute(
        "insert into tombstones (id, owner_id, title, description, created_date, updated_date, version, mod_revision) "
        "select n + 1000000, 1 + n % 10, 'Ink', '', now(), now(), 1, n from generate_series(1, 200000) as n"
    )
    await database.execute(
        "insert into note_versions (note_id, version, owner_id, body) "
        "select n + 1000000, 1, 1 + n % 10, '{}' from generate_series(1, 200000) as n"
    )

    assert await fastest_of(10) < 0.05  # scanning only the users takes as long


@contextmanager
def waits_for_a_standby(settings: WorkerSettings) -> Iterator[Connections]:
    """A worker's connection whose commits wait for the standby."""
    connections = Connections(settings.database_url, "test", 1, {**SESSION_SETTINGS, "synchronous_commit": "on"})
    yield connections
    connections.close()


@pytest.fixture
async def lost_standby(database: "Connection[Record]") -> AsyncIterator[None]:
    """A synchronous standby that does not answer; only sessions that ask for it wait."""
    for change in ("synchronous_commit = local", "synchronous_standby_names = 'gone'"):
        await database.execute(f"alter system set {change}")
    await reload(database)
    yield
    for name in ("synchronous_standby_names", "synchronous_commit"):
        await database.execute(f"alter system reset {name}")
    await reload(database)


async def reload(database: "Connection[Record]") -> None:
    await database.execute("select pg_reload_conf()")
    await asyncio.sleep(0.3)


@pytest.mark.usefixtures("lost_standby")
async def test_commit_that_an_operator_has_stop_waiting_for_the_standby_is_in_doubt(
    worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    with waits_for_a_standby(worker_settings) as connections:
        for apply in (apply_batch, apply_in_transaction):
            applying = asyncio.create_task(apply(connections, [delete(7)]))
            await eventually(lambda: is_committing(database))
            await database.execute("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")

            with pytest.raises(ConnectionError):
                await applying
    assert await database.fetchval("select count(*) from commands") == 2


async def is_committing(database: "Connection[Record]") -> bool:
    waiting = "select exists (select from pg_stat_activity where wait_event = 'SyncRep')"
    return bool(await database.fetchval(waiting))


@pytest.mark.usefixtures("lost_standby")
@pytest.mark.parametrize("command", [delete(7), delete(7, owner=999)], ids=["of a user", "of an unknown user"])
async def test_outcome_whose_commit_waited_for_a_lost_standby_is_not_sent_before_the_standby_has_it(
    worker_settings: WorkerSettings, database: "Connection[Record]", command: Command
) -> None:
    with waits_for_a_standby(worker_settings) as connections:
        applying = asyncio.create_task(apply_batch(connections, [command]))
        await asyncio.wait([applying], timeout=1)
        assert not applying.done()
        applying.cancel()
        await database.execute("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
        await eventually(lambda: database.fetchval("select count(*) from commands where id = $1", command.id))

        redelivered = asyncio.create_task(apply_batch(connections, [command]))
        await eventually(lambda: is_committing(database))
        await database.execute("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
        with pytest.raises(ConnectionError):
            await redelivered

        redelivered = asyncio.create_task(apply_batch(connections, [command]))
        await asyncio.wait([redelivered], timeout=1)
        assert not redelivered.done()

        await database.execute("alter system reset synchronous_standby_names")
        await reload(database)
        [outcome] = await redelivered
    assert outcome.id == command.id
    assert await database.fetchval("select count(*) from commands") == 1
