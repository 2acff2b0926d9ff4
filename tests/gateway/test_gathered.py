"""Reads of single notes share a statement invisibly: authorization and failures stay per read."""

import asyncio
from collections.abc import Sequence
from typing import cast

import httpx
import pytest
from asyncpg import Connection, Record

from gateway.caller import IMPLICIT_CALLER
from gateway.reads.errors import CredentialsOutdatedError
from gateway.reads.gathered import READS_LIMIT, STATEMENTS_LIMIT, GatheredReads, NoteRead
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import bearer, forged, sign_up
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from worker.settings import WorkerSettings


class Postgres:
    """A Postgres that answers statements on demand; note 404 does not exist, and note 401 has an outdated caller."""

    def __init__(self) -> None:
        self.statements: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def fetch(self, reads: Sequence[NoteRead]) -> tuple[None, list[Record]]:
        """The rows, without a known timeline."""
        self.statements.append([read.note_id for read in reads])
        await self.may_answer.wait()
        if self.error:
            error, self.error = self.error, None
            raise error
        rows = [
            (place, None if read.note_id == 404 else str(read.note_id), 1, 0)
            for place, read in enumerate(reads, start=1)
            if read.note_id != 401
        ]
        return None, cast("list[Record]", rows)


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def ask(gathered: GatheredReads, *note_ids: int, seconds: float = 10.0) -> "list[asyncio.Task[tuple[str, int] | None]]":
    async def find(note_id: int) -> tuple[str, int] | None:
        note, version, _ = await gathered.read(IMPLICIT_CALLER, note_id, in_seconds(seconds))
        return (note, version) if note and version else None

    return [asyncio.create_task(find(note_id)) for note_id in note_ids]


async def test_reads_that_arrive_while_statements_are_in_progress_share_the_next_one() -> None:
    postgres = Postgres()
    gathered = GatheredReads(postgres.fetch)

    reads = []
    for note_id in range(1, STATEMENTS_LIMIT + 1):
        reads += ask(gathered, note_id)
        await asyncio.sleep(0.01)
    reads += ask(gathered, 7, 404, 8)
    await asyncio.sleep(0.01)
    postgres.may_answer.set()

    assert await asyncio.gather(*reads) == [("1", 1), ("2", 1), ("7", 1), None, ("8", 1)]
    assert postgres.statements == [[1], [2], [7, 404, 8]]


async def test_a_statement_has_a_bounded_number_of_reads() -> None:
    postgres = Postgres()
    gathered = GatheredReads(postgres.fetch)

    reads = ask(gathered, *range(1000, 1000 + 3 * READS_LIMIT))
    await asyncio.sleep(0.01)
    postgres.may_answer.set()
    await asyncio.gather(*reads)

    assert max(map(len, postgres.statements)) == READS_LIMIT
    assert sum(map(len, postgres.statements)) == 3 * READS_LIMIT


async def test_outdated_credentials_fail_one_read_alone() -> None:
    postgres = Postgres()
    gathered = GatheredReads(postgres.fetch)

    reads = ask(gathered, 1, 2, 3, 401, 4)
    postgres.may_answer.set()
    *_, found, refused, other = await asyncio.gather(*reads, return_exceptions=True)

    assert (found, other) == (("3", 1), ("4", 1))
    assert isinstance(refused, CredentialsOutdatedError)


@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError("a bug")], ids=type)
async def test_a_failed_statement_fails_its_own_reads_alone(error: Exception) -> None:
    postgres = Postgres()
    gathered = GatheredReads(postgres.fetch)

    reads = ask(gathered, 1, 2)
    await asyncio.sleep(0.01)
    reads += ask(gathered, 3, 4)
    await asyncio.sleep(0.01)
    reads += ask(gathered, 5, 6)
    await asyncio.sleep(0.01)
    postgres.error = error
    postgres.may_answer.set()
    responses = await asyncio.gather(*reads, return_exceptions=True)

    failed = [number for number, response in enumerate(responses, start=1) if response is error]
    assert postgres.statements == [[1, 2], [3, 4], [5, 6]]
    assert failed == [1, 2]


async def test_client_that_disconnects_cancels_no_other_read() -> None:
    postgres = Postgres()
    gathered = GatheredReads(postgres.fetch)

    reads = ask(gathered, 1, 2, 3)
    await asyncio.sleep(0.01)
    reads[0].cancel()
    reads[2].cancel()
    postgres.may_answer.set()

    assert await reads[1] == ("2", 1)
    assert await ask(gathered, 5)[0] == ("5", 1)


async def test_a_read_ends_at_its_own_deadline_though_it_shares_a_statement() -> None:
    postgres = Postgres()
    gathered = GatheredReads(postgres.fetch)

    hasty, *_ = ask(gathered, 1, seconds=0.05)
    [patient] = ask(gathered, 2)
    with pytest.raises(TimeoutError):
        await hasty
    postgres.may_answer.set()

    assert await patient == ("2", 1)


async def test_a_read_that_was_given_up_is_not_sent() -> None:
    postgres = Postgres()
    gathered = GatheredReads(postgres.fetch)
    reads = []
    for note_id in (*range(1, STATEMENTS_LIMIT + 1), 7):
        reads += ask(gathered, note_id, seconds=0.1)
        await asyncio.sleep(0.01)

    [patient] = ask(gathered, 8)
    given_up = await asyncio.gather(*reads, return_exceptions=True)
    postgres.may_answer.set()

    assert [type(each) for each in given_up] == [TimeoutError] * len(reads)
    assert await patient == ("8", 1)
    assert postgres.statements[-1] == [8]


async def test_reads_of_an_idle_gateway_leave_nothing_behind() -> None:
    postgres = Postgres()
    postgres.may_answer.set()
    gathered = GatheredReads(postgres.fetch)

    await asyncio.gather(*ask(gathered, *range(1, 300), seconds=0.2))

    assert not gathered._pending
    await eventually(lambda: has_no_timer(gathered))


async def has_no_timer(gathered: GatheredReads) -> bool:
    return gathered._expiry is None


async def test_close_ends_the_reads_in_progress() -> None:
    postgres = Postgres()
    gathered = GatheredReads(postgres.fetch)
    reads = ask(gathered, 1)
    await asyncio.sleep(0.01)
    reads += ask(gathered, 2)
    await asyncio.sleep(0.01)
    reads += ask(gathered, 3)
    await asyncio.sleep(0.01)

    gathered.close()

    responses = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(response) for response in responses] == [asyncio.CancelledError] * 3


async def test_each_owner_reads_their_own_notes_through_one_statement(
    password_settings: GatewaySettings, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    async with harness.worker(worker_settings), harness.gateway(password_settings) as client:
        people = [await sign_up(client, name) for name in ("Ada", "Bob")]
        notes = [await write(client, person.headers) for person in people]
        outdated = bearer(forged(password_settings, people[0].id, credentials_version=7))
        wanted = [(person.headers, note) for person in people for note in notes] + [(outdated, notes[0])]

        responses = await asyncio.gather(*(client.get(url, headers=headers) for headers, url in wanted * 20))

    statuses = [response.status_code for response in responses]
    assert statuses == [200, 404, 404, 200, 401] * 20
    assert {response.json()["id"] for response in responses[::5]} == {int(notes[0].rpartition("/")[2])}
    assert await database.fetchval("select count(*) from notes") == 2


async def test_a_read_sees_the_write_that_was_answered_before_it(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async def write_and_read(client: httpx.AsyncClient) -> bool:
        url = await write(client, {})
        changed = await client.put(url, json=NOTE | {"title": url})
        read = await client.get(url)
        return read.headers["etag"] == changed.headers["etag"] and read.json()["title"] == url

    async with harness.worker(worker_settings), harness.gateway(gateway_settings) as client:
        assert all(await asyncio.gather(*(write_and_read(client) for _ in range(50))))


async def write(client: httpx.AsyncClient, headers: dict[str, str]) -> str:
    return str((await client.post("/notes", json=NOTE, headers=headers)).headers["location"])
