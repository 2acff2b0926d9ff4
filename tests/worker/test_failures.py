"""Which failures count as bugs, and their effect on a command."""

from datetime import UTC, datetime

import pytest
from asyncpg import Connection, InsufficientPrivilegeError, LockNotAvailableError, QueryCanceledError, Record

from shared.connections import Connections
from shared.contracts import Outcome, OutcomeStatus, ReplaceItem
from tests.support.commands import create, replace, several
from worker import failures
from worker.apply import apply_batch, record_failure
from worker.attempts import mark_attempt
from worker.decisions import Failed, Note, NoteVersions, User
from worker.failures import MAX_CRASHES, MAX_SLOW_ATTEMPTS, Applier, RepeatedBugError, classify, describe
from worker.fold import Fold
from worker.rows import Rows

REFUSE = (
    "create function refuse() returns trigger language plpgsql as $$ begin"
    " raise exception 'string is too long for tsvector' using errcode = '54000'; end $$;"
    "create trigger refuse before insert on notes for each row when (new.title = 'long') execute function refuse()"
)
SLEEP = (
    "create function sleep() returns trigger language plpgsql as $$ begin"
    " perform pg_sleep({seconds}); return new; end $$;"
    "create trigger sleep before insert on notes for each row when (new.title = 'slow') execute function sleep()"
)


@pytest.mark.parametrize("lives", [MAX_CRASHES - 1, MAX_CRASHES])
async def test_command_is_failed_when_so_many_processes_left_a_mark_and_no_outcome(
    connections: Connections, database: "Connection[Record]", lives: int
) -> None:
    command = create()
    for dead in [Applier(connections) for _ in range(lives)]:
        await mark_attempt(connections, command.id, dead.process_id)

    [outcome] = await Applier(connections).apply_isolated([command])

    assert (outcome.status, outcome.reason) == (
        ("failed", "worker_killed") if lives == MAX_CRASHES else ("applied", None)
    )
    assert await database.fetchval("select count(*) from attempt_marks") == 0


async def test_transient_failure_does_not_count_as_a_death_however_many_workers_meet_it(
    connections: Connections, database: "Connection[Record]"
) -> None:
    command = create()
    await database.execute("revoke insert on notes from inkwell_worker")
    for applier in [Applier(connections) for _ in range(2 * MAX_CRASHES)]:
        with pytest.raises(InsufficientPrivilegeError):
            await applier.apply_isolated([command])
    await database.execute("grant insert on notes to inkwell_worker")

    [outcome] = await Applier(connections).apply_isolated([command])

    assert outcome.status == "applied"


async def test_text_beyond_a_limit_of_postgres_fails_its_command_alone(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await database.execute(REFUSE)

    failed, applied = await Applier(connections).apply([create("long"), create("short")])

    assert (failed.status, failed.reason, applied.status) == ("failed", "data_error", "applied")


async def test_words_of_a_text_that_expands_when_it_is_normalized_can_be_stored(
    database: "Connection[Record]",
) -> None:
    assert await database.fetchval("select inkwell_words(repeat('\ufdfa', 40000)) is not null")


async def test_command_of_one_owner_after_another_success_fails_and_nobody_waits(
    connections: Connections, database: "Connection[Record]"
) -> None:
    """Somebody who finds a text that Postgres refuses cannot stop the writes of others with it."""
    await database.execute(REFUSE)
    applier = Applier(connections)
    poisons = create("long"), create("long")

    [first] = await applier.apply(poisons[:1])
    with pytest.raises(RepeatedBugError):
        await applier.apply(poisons[1:])
    await applier.apply(poisons[:1])  # delivered again: what has its outcome already is no evidence
    with pytest.raises(RepeatedBugError):
        await applier.apply(poisons[1:])
    await applier.apply([create("short")])
    [second] = await applier.apply(poisons[1:])

    assert (first.reason, second.reason) == ("data_error", "data_error")


async def test_command_that_needs_longer_than_a_batch_may_take_is_applied_alone(
    connections: Connections, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.execute(SLEEP.format(seconds=2))
    monkeypatch.setattr("shared.connections.STATEMENT_SETTINGS", {"statement_timeout": "1000"})
    command = create("slow")
    monkeypatch.setattr(failures, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(failures, "CONTROL_SECONDS", 60.0)
    applier = Applier(connections)
    with pytest.raises(QueryCanceledError):
        await applier.apply([command])
    with pytest.raises((QueryCanceledError, TimeoutError)):
        await applier.apply_isolated([command])

    [outcome] = await applier.apply_isolated([command])

    assert outcome.status == "applied"


async def test_command_that_is_too_slow_alone_fails_after_several_attempts(
    connections: Connections, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.execute(SLEEP.format(seconds=5))
    monkeypatch.setattr(failures, "SLOW_SECONDS", 1.0)
    monkeypatch.setattr(failures, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(failures, "CONTROL_SECONDS", 60.0)
    applier, command = Applier(connections), create("slow")
    for _ in range(MAX_SLOW_ATTEMPTS):
        with pytest.raises((TimeoutError, QueryCanceledError)):
            await applier.apply_isolated([command])

    monkeypatch.setattr(failures, "TIMEOUT_SECONDS", 10.0)
    failed, applied = await applier.apply_isolated([command, create("quick")])

    assert (failed.status, failed.reason, applied.status) == ("failed", "too_slow", "applied")
    assert await database.fetchval("select count(*) from attempt_marks") == 0


async def test_attempt_while_postgres_is_slow_with_everything_is_not_held_against_its_command(
    connections: Connections, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.execute(SLEEP.format(seconds=5))
    monkeypatch.setattr(failures, "SLOW_SECONDS", 1.0)
    monkeypatch.setattr(failures, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(failures, "CONTROL_SECONDS", 0.0)
    applier, command = Applier(connections), create("slow")
    for _ in range(MAX_SLOW_ATTEMPTS + 1):
        with pytest.raises((TimeoutError, QueryCanceledError)):
            await applier.apply_isolated([command])
    await database.execute("drop trigger sleep on notes")

    [outcome] = await applier.apply_isolated([command])

    assert outcome.status == "applied"


async def test_table_that_is_locked_is_a_transient_failure_of_the_whole_batch(
    connections: Connections, database: "Connection[Record]"
) -> None:
    async with database.transaction():
        await database.execute("lock table notes in access exclusive mode")
        with pytest.raises(LockNotAvailableError) as caught:
            await Applier(connections).apply([replace(1)])

    assert classify(caught.value).name == "TRANSIENT"
    assert describe(caught.value) == "LockNotAvailableError 55P03: canceling statement due to lock timeout"


async def test_command_that_failed_and_comes_again_keeps_its_outcome(connections: Connections) -> None:
    command = create()
    for dead in [Applier(connections) for _ in range(MAX_CRASHES)]:
        await mark_attempt(connections, command.id, dead.process_id)
    first = await Applier(connections).apply_isolated([command])
    for dead in [Applier(connections) for _ in range(MAX_CRASHES)]:
        await mark_attempt(connections, command.id, dead.process_id)

    assert await Applier(connections).apply_isolated([command]) == first


@pytest.mark.parametrize("error", [OSError(), TimeoutError(), RuntimeError("from a library"), ValueError(), KeyError()])
def test_what_is_not_known_is_transient(error: Exception) -> None:
    assert classify(error).name == "TRANSIENT"


async def test_forced_replay_that_fails_again_does_not_let_a_later_one_pass_unforced(connections: Connections) -> None:
    command = replace(1)
    await apply_batch(connections, [create()])
    await record_failure(connections, command, "handler_error")
    await apply_batch(connections, [replace(1)])
    again = {"replayed_at": datetime.now(UTC)}
    await record_failure(connections, command.model_copy(update=again | {"replay_forced": True}), "handler_error")

    [outcome] = await apply_batch(connections, [command.model_copy(update=again)])

    assert (outcome.status, outcome.reason) == ("failed", "superseded")


def test_several_writes_without_known_versions_fail_again_without_versions() -> None:
    """The worker that failed them could not read them, so any version of their notes may be newer."""
    command = several(ReplaceItem(note_id=1, title="Pen", description=""))
    note = Note(1, command.owner, "Ink", "", command.time, command.time, version=3)
    owner = User(command.owner, command.credentials_version, "ada", "ada", command.time, command.time)
    failure = Outcome(id=command.id, status=OutcomeStatus.FAILED, http_status=500)
    fold = Fold(Rows({owner.id: owner}), Rows({note.id: note}), known={command.id: failure})

    fold.fail(command, "handler_error")

    [(_, decision)] = fold.decisions.values()
    assert isinstance(decision, Failed)
    assert decision.note_versions == NoteVersions(versions={})
