"""The pool of connections to Postgres: failures and cancellations of one do not affect the others."""

import asyncio

import asyncpg
import pytest
from asyncpg import Connection, Record

from shared.connections import Connections
from shared.database import Session, connect
from shared.primary import FormerPrimaryError, Timeline, identify
from tests.support.harness import eventually
from worker.settings import WorkerSettings

RUNNING = "select count(*) from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(7)'"


async def test_abandoned_statement_ends_with_its_session(
    connections: Connections, database: "Connection[Record]"
) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), connections.acquire() as session:
                await session.execute("select pg_sleep(7)")

    await eventually(lambda: none_runs(database), within_seconds=3)


async def none_runs(database: "Connection[Record]") -> bool:
    return not await database.fetchval(RUNNING)


async def idle_sessions(connections: Connections, count: int = 3) -> list[Session]:
    """This many connections, opened and idle."""

    async def use(ready: asyncio.Barrier) -> Session:
        async with connections.acquire() as session:
            await ready.wait()
            return session

    ready = asyncio.Barrier(count)
    return list(await asyncio.gather(*(use(ready) for _ in range(count))))


async def used_again(connections: Connections, count: int = 3) -> set[Session]:
    """The sessions that the next callers get."""
    return set(await idle_sessions(connections, count))


async def test_error_of_any_kind_on_a_lost_connection_is_a_connection_error(connections: Connections) -> None:
    with pytest.raises(ConnectionError, match="RuntimeError"):
        await fail(connections, is_lost=True)

    assert len(await used_again(connections)) == 3


async def test_error_of_any_kind_while_connecting_is_a_connection_error(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(*_: object, **__: object) -> None:
        raise asyncio.InvalidStateError

    monkeypatch.setattr("shared.connections.connect", connect)

    with pytest.raises(ConnectionError, match="InvalidStateError"):
        await fail(connections, is_lost=False)


async def test_error_on_an_open_connection_stays_what_it_is(connections: Connections) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        await fail(connections, is_lost=False)


async def fail(connections: Connections, *, is_lost: bool) -> None:
    async with connections.acquire() as session:
        if is_lost:
            session.terminate()
        raise RuntimeError("a bug")


async def test_idle_connections_are_used_again(connections: Connections) -> None:
    sessions = await idle_sessions(connections)

    assert await used_again(connections) == set(sessions)


async def test_idle_connections_are_dropped_when_the_server_ends_one(
    connections: Connections, database: "Connection[Record]"
) -> None:
    sessions = await idle_sessions(connections)
    asking = asyncio.create_task(sleep(connections))
    await eventually(lambda: end_sleeping(database))
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await asking

    assert not await used_again(connections) & set(sessions)


async def sleep(connections: Connections) -> None:
    """Runs a long statement."""
    async with connections.acquire() as session:
        await session.execute("select pg_sleep(7)")


async def end_sleeping(database: "Connection[Record]") -> bool:
    """Makes the server end the sleeping session."""
    return bool(await database.fetch(RUNNING.replace("count(*)", "pg_terminate_backend(pid)")))


async def test_idle_connections_are_dropped_when_the_server_is_silent(connections: Connections) -> None:
    sessions = await idle_sessions(connections)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.6), connections.acquire() as session:
            await session.fetch("select pg_sleep(5)")

    assert not await used_again(connections) & set(sessions)


async def test_idle_connections_are_dropped_when_one_finds_that_it_may_only_read(connections: Connections) -> None:
    sessions = await idle_sessions(connections)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with connections.acquire() as session:
            await session.execute("begin read only; delete from notes")

    assert not await used_again(connections) & set(sessions)


async def test_idle_connections_are_dropped_when_the_server_says_that_it_takes_no_writes(
    connections: Connections,
) -> None:
    sessions = await idle_sessions(connections)
    async with connections.acquire() as session:
        # The server reports a changed setting with the reply to any statement, however it was changed.
        await session.execute("set default_transaction_read_only = on")

    assert not await used_again(connections) & set(sessions)


@pytest.mark.parametrize("statement", ["select 1 / 0", "set statement_timeout = 1; select pg_sleep(1)", "nonsense"])
async def test_idle_connections_are_kept_when_only_a_statement_fails(connections: Connections, statement: str) -> None:
    sessions = await idle_sessions(connections)
    with pytest.raises(asyncpg.PostgresError):
        async with connections.acquire() as session:
            await session.execute(statement)

    assert len(await used_again(connections) & set(sessions)) == len(sessions) - 1


async def test_idle_connections_are_kept_when_a_caller_gives_up_soon(connections: Connections) -> None:
    sessions = await idle_sessions(connections)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), connections.acquire() as session:
            await session.fetch("select pg_sleep(5)")

    assert len(await used_again(connections) & set(sessions)) == len(sessions) - 1


async def test_idle_connections_are_dropped_when_a_newer_timeline_is_seen(connections: Connections) -> None:
    sessions = await idle_sessions(connections)
    timeline = await identify(sessions[0], 5)
    assert timeline
    connections.primary.observe(timeline)
    assert await used_again(connections) == set(sessions)

    connections.primary.observe(Timeline("1" + timeline.system, timeline.number + 1))
    assert await used_again(connections) == set(sessions)

    connections.primary.observe(Timeline(timeline.system, timeline.number + 1))
    with pytest.raises(FormerPrimaryError):
        await used_again(connections)


async def test_session_in_use_is_ended_when_a_newer_timeline_is_seen(connections: Connections) -> None:
    [session] = await idle_sessions(connections, 1)
    timeline = await identify(session, 5)
    assert timeline
    asking = asyncio.create_task(sleep(connections))
    await asyncio.sleep(0.2)
    connections.primary.distrust(session)  # as after another session's failure

    connections.primary.observe(Timeline(timeline.system, timeline.number + 1))

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        async with asyncio.timeout(2):
            await asking


async def test_roles_without_rights_see_the_timeline(worker_settings: WorkerSettings) -> None:
    session = await connect(worker_settings.database_url, "test")

    timeline = await identify(session, 5)

    await session.close()
    assert timeline
    assert timeline.number >= 1
    assert Timeline.parse(str(timeline)) == timeline


@pytest.mark.parametrize("text", ["", "x", "1", "1/", "/1", "1/x", "1/2/3", "9" * 5000 + "/1", "1/" + "9" * 5000])
def test_what_is_no_timeline_is_ignored(text: str) -> None:
    assert Timeline.parse(text) is None


async def test_server_that_does_not_reveal_its_timeline_is_used_without_one(
    database: "Connection[Record]", worker_settings: WorkerSettings
) -> None:
    await database.execute("revoke execute on function pg_control_system() from public")

    session = await connect(worker_settings.database_url, "test")

    assert await identify(session, 5) is None
    session.terminate()


async def test_watch_goes_on_while_no_server_answers(
    worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[str]()

    async def refuse(_: object, name: str) -> None:
        tried.append(name)
        raise ConnectionRefusedError

    async def is_tried_again() -> bool:
        return len(tried) >= 3

    monkeypatch.setattr("shared.connections.WATCH_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr("shared.connections.connect", refuse)
    watching = asyncio.create_task(Connections(worker_settings.database_url, "test", 1).watch_primary())
    await eventually(is_tried_again)
    watching.cancel()

    assert set(tried) == {"test watching"}
