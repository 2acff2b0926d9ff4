"""One owner's reads do not delay those of others: who gets a permit, in which order, and who is rejected."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from asyncpg import Connection, Record

from gateway.reads import fair_limiter
from gateway.reads.fair_limiter import FairLimiter, ShareExhaustedError
from gateway.settings import GatewaySettings
from gateway.telemetry.metrics import READS_FAILED
from tests.support import harness
from tests.support.accounts import Person, sign_up
from tests.support.harness import eventually
from worker.settings import WorkerSettings

GREEDY, ADA, BOB = 1, 2, 3
LOCK = 7
SEARCHES_WAIT_FOR_A_LOCK = f"""
create or replace function inkwell_search_language() returns regconfig immutable language sql security definer
as 'select case when pg_advisory_xact_lock_shared({LOCK})::text = '''' then ''english''::regconfig end'
"""
UNDER_WAY = """
select count(*) from pg_stat_activity
where usename = 'inkwell_gateway' and datname = current_database() and wait_event_type = 'Lock'
"""


def soon() -> float:
    return asyncio.get_running_loop().time() + 30


class Reads:
    """Reads that hold a permit until the test ends them, in the order in which they got it."""

    def __init__(self, permits: int, share: int) -> None:
        self.limiter = FairLimiter(permits, share)
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def begin(self, owner: int, name: str) -> "asyncio.Task[None]":
        """Starts an owner's read, which holds a permit or waits when this returns."""
        self._ends[name] = asyncio.Event()
        task = asyncio.create_task(self._read(owner, name))
        await asyncio.sleep(0)
        return task

    async def end(self, name: str) -> None:
        self._ends[name].set()
        for _ in range(4):
            await asyncio.sleep(0)

    async def _read(self, owner: int, name: str) -> None:
        async with self.limiter.permit(owner, soon()):
            self.begun.append(name)
            await self._ends[name].wait()


async def test_owner_has_no_more_than_a_share_and_another_one_finds_a_place() -> None:
    reads = Reads(permits=3, share=2)
    tasks = [await reads.begin(GREEDY, f"greedy {number}") for number in range(5)]
    tasks.append(await reads.begin(ADA, "ada"))

    assert reads.begun == ["greedy 0", "greedy 1", "ada"]

    for name in ("greedy 0", "greedy 1", "greedy 2", "greedy 3", "greedy 4", "ada"):
        await reads.end(name)
    await asyncio.gather(*tasks)
    assert reads.begun == ["greedy 0", "greedy 1", "ada", "greedy 2", "greedy 3", "greedy 4"]


async def test_those_who_wait_get_a_place_in_turn_and_each_owners_requests_in_their_order() -> None:
    reads = Reads(permits=1, share=1)
    tasks = [await reads.begin(GREEDY, f"greedy {number}") for number in range(4)]
    tasks += [await reads.begin(ADA, "ada 0"), await reads.begin(BOB, "bob 0"), await reads.begin(ADA, "ada 1")]

    order = ["greedy 0", "greedy 1", "ada 0", "bob 0", "greedy 2", "ada 1", "greedy 3"]
    for name in order:
        await reads.end(name)
    await asyncio.gather(*tasks)
    assert reads.begun == order


async def test_place_of_a_read_that_was_given_up_is_free() -> None:
    reads = Reads(permits=1, share=1)
    running = await reads.begin(GREEDY, "running")
    waiting = await reads.begin(GREEDY, "waiting")
    last = await reads.begin(ADA, "last")

    waiting.cancel()
    running.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    await reads.end("last")

    await last
    assert reads.begun == ["running", "last"]


async def test_place_that_comes_as_its_read_is_given_up_goes_to_the_next() -> None:
    reads = Reads(permits=1, share=1)
    async with reads.limiter.permit(GREEDY, soon()):
        waiting = await reads.begin(ADA, "waiting")
        last = await reads.begin(BOB, "last")
    waiting.cancel()  # it has its permit but has not noticed
    await asyncio.gather(waiting, return_exceptions=True)
    await reads.end("last")

    await last
    assert reads.begun == ["last"]


async def test_read_that_is_given_up_as_a_place_comes_does_not_get_it() -> None:
    reads = Reads(permits=1, share=1)
    async with reads.limiter.permit(GREEDY, soon()):
        waiting = await reads.begin(ADA, "waiting")
        last = await reads.begin(ADA, "last")
        waiting.cancel()  # it has not noticed when the permit is released
    await asyncio.gather(waiting, return_exceptions=True)
    await reads.end("last")

    await last
    assert reads.begun == ["last"]


async def test_requests_beyond_the_bound_are_refused_at_once_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fair_limiter, "WAITING_LIMIT", 2)
    reads = Reads(permits=1, share=1)
    tasks = [await reads.begin(GREEDY, f"greedy {number}") for number in range(3)]

    with pytest.raises(ShareExhaustedError):
        await (await reads.begin(GREEDY, "one too many"))
    tasks.append(await reads.begin(ADA, "ada"))
    for name in ("greedy 0", "greedy 1", "ada", "greedy 2"):
        await reads.end(name)
    await asyncio.gather(*tasks)


async def test_error_at_the_deadline_says_whether_the_owners_own_requests_were_in_the_way() -> None:
    reads = Reads(permits=2, share=1)
    tasks = [await reads.begin(GREEDY, "greedy"), await reads.begin(ADA, "ada")]
    now = asyncio.get_running_loop().time()

    with pytest.raises(ShareExhaustedError):
        async with reads.limiter.permit(GREEDY, now + 0.01):
            pytest.fail("there is no place")
    with pytest.raises(TimeoutError):
        async with reads.limiter.permit(BOB, now + 0.01):
            pytest.fail("there is no place")
    for name in ("greedy", "ada"):
        await reads.end(name)
    await asyncio.gather(*tasks)
    assert (reads.limiter._free, reads.limiter._held, reads.limiter._waiting) == (2, {}, {})


@pytest.fixture
async def searches_wait(database: "Connection[Record]") -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Searches wait in Postgres until the test calls this."""
    await database.execute(SEARCHES_WAIT_FOR_A_LOCK)
    await database.execute(f"select pg_advisory_lock({LOCK})")

    async def let_go() -> None:
        await database.execute("select pg_advisory_unlock_all()")

    yield let_go
    await let_go()


@asynccontextmanager
async def two_users(
    settings: GatewaySettings, worker_settings: WorkerSettings, **changes: object
) -> AsyncIterator[tuple[httpx.AsyncClient, Person, Person]]:
    """A client of a gateway with two users."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(harness.worker(worker_settings))
        client = await stack.enter_async_context(harness.gateway(settings.model_copy(update=changes)))
        yield client, await sign_up(client), await sign_up(client)


async def test_owner_with_long_searches_runs_one_at_a_time_and_delays_no_other_owner(
    password_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    searches_wait: Callable[[], Awaitable[None]],
) -> None:
    slow = {"search_timeout_seconds": 30.0, "read_timeout_seconds": 30.0}
    async with two_users(password_settings, worker_settings, **slow) as (client, greedy, ada):
        searches = [asyncio.create_task(client.get("/notes/search?q=ink", headers=greedy.headers)) for _ in range(20)]
        await eventually(lambda: database.fetchval(UNDER_WAY))

        for path in ("/notes", "/notes?sort=-title&total=true", "/auth/tokens", "/users/me", "/notes"):
            read = await client.get(path, headers=ada.headers)
            assert (read.status_code, read.elapsed.total_seconds() < 2) == (200, True)
        own = await client.get("/notes", headers=greedy.headers)

        assert own.status_code == 200
        assert not any(search.done() for search in searches)
        assert await database.fetchval(UNDER_WAY) == 1
        await searches_wait()
        assert {search.status_code for search in await asyncio.gather(*searches)} == {200}


async def test_search_that_takes_too_long_is_stopped_and_does_not_count_as_a_failed_read(
    password_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    searches_wait: Callable[[], Awaitable[None]],
) -> None:
    failed = READS_FAILED._value.get()
    short = {"search_timeout_seconds": 0.2, "read_timeout_seconds": 1.0}
    async with two_users(password_settings, worker_settings, **short) as (client, greedy, _):
        one = await client.get("/notes/search?q=ink", headers=greedy.headers)
        many = await asyncio.gather(*(client.get("/notes/search?q=ink", headers=greedy.headers) for _ in range(12)))
        await searches_wait()
        found = await client.get("/notes/search?q=ink", headers=greedy.headers)

    assert (one.status_code, one.json()["code"]) == (503, "search_timeout")
    assert 1 <= int(one.headers["retry-after"]) <= 5
    assert one.elapsed.total_seconds() < 1
    assert {response.json()["code"] for response in many} == {"search_timeout", "overloaded"}
    assert max(response.elapsed.total_seconds() for response in many) < 2
    assert (found.status_code, READS_FAILED._value.get()) == (200, failed)
    assert await database.fetchval(UNDER_WAY) == 0


async def test_searches_of_one_owner_beyond_the_bound_are_refused_at_once(
    password_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    searches_wait: Callable[[], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fair_limiter, "WAITING_LIMIT", 3)
    slow = {"search_timeout_seconds": 30.0, "read_timeout_seconds": 30.0}
    async with two_users(password_settings, worker_settings, **slow) as (client, greedy, _):
        searches = [asyncio.create_task(client.get("/notes/search?q=ink", headers=greedy.headers)) for _ in range(8)]

        async def are_refused() -> bool:
            return sum(search.done() for search in searches) == 4

        await eventually(are_refused)
        refused = [search.result() for search in searches if search.done()]
        assert {(response.status_code, response.json()["code"]) for response in refused} == {(503, "overloaded")}
        await searches_wait()
        await asyncio.gather(*searches)


async def test_only_owner_has_all_permits_without_authentication(
    gateway_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    searches_wait: Callable[[], Awaitable[None]],
) -> None:
    slow = {"search_timeout_seconds": 30.0, "read_timeout_seconds": 30.0}
    settings = gateway_settings.model_copy(update=slow)
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        searches = [asyncio.create_task(client.get("/notes/search?q=ink")) for _ in range(8)]

        async def are_under_way() -> bool:
            return bool(await database.fetchval(UNDER_WAY) == 2)

        await eventually(are_under_way)
        assert (await client.get("/notes")).status_code == 200
        await searches_wait()
        await asyncio.gather(*searches)


async def test_words_of_a_search_are_bounded(shared_client: httpx.AsyncClient) -> None:
    many, enough = " ".join("abcdefghijklmnopqrstu"), "a or b " * 10
    refused = await shared_client.get("/notes/search", params={"q": many})
    found = await shared_client.get("/notes/search", params={"q": enough[:-1]})

    [error] = refused.json()["errors"]
    assert (refused.status_code, error["pointer"], error["code"]) == (422, "/query/q", "too_long")
    assert found.status_code == 422  # `or` is a word, too
    assert (await shared_client.get("/notes/search", params={"q": "a " * 20})).status_code == 200


@pytest.mark.parametrize(
    ("q", "status"),
    [
        ("-".join("abcdefghijklmnopqrst"), 200),
        ("-".join("abcdefghijklmnopqrstu"), 422),
        ("_".join("abcdefghijklmnopqrstu"), 422),
        ('"' + " ".join("abcdefghijklmnopqrstu") + '"', 422),
        ("\ufdfa" * 5, 200),  # sixteen words, when it is normalized
        ("\ufdfa" * 200, 422),
        ("हिन्दी " * 20, 200),
        ("हिन्दी " * 21, 422),
        ("\u0344" * 200, 200),
        ("a" + "\u0301" * 199, 200),
        ("%" * 200, 200),
        ("_%" * 100, 200),
        ("🎉 " * 100, 200),
    ],
)
async def test_words_are_counted_as_they_are_compared(shared_client: httpx.AsyncClient, q: str, status: int) -> None:
    assert (await shared_client.get("/notes/search", params={"q": q})).status_code == status


async def test_similar_notes_are_looked_for_where_that_is_little_work(client: httpx.AsyncClient) -> None:
    await client.post("/notes", json={"title": "Receive the parcel", "description": ""})
    short = (await client.get("/notes/search", params={"q": "recieve the parcell"})).json()
    long = (await client.get("/notes/search", params={"q": "recieve the parcell " + "x" * 50})).json()

    assert (short["matched"], short["total"]) == ("similar", 1)
    assert (long["matched"], long["total"]) == ("words", 0)
