"""The effects of a batch on users and their tokens, and the effects of their names and credentials on a batch."""

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from asyncpg import Connection, LockNotAvailableError, Record

from shared.connections import Connections
from shared.contracts import (
    BadCommand,
    ChangeUser,
    Command,
    CreateToken,
    DeleteUser,
    NoData,
    Outcome,
    OutcomeStatus,
    RegisterUser,
    Registration,
    RenewedHash,
    RenewHash,
    RevokeToken,
    Scope,
    TokenRequest,
    TokenTarget,
    UserChange,
    find_envelope,
    print_time,
)
from shared.database import connect
from tests.support.applying import apply_with_others
from tests.support.commands import CHEAP_HASH, DIGEST, attributes, create, delete
from tests.support.harness import eventually
from worker.apply import apply_batch, record_failure
from worker.failures import Applier
from worker.housekeeping import TRY_LOCK
from worker.settings import WorkerSettings

NAMED_AS_HOUSEKEEPINGS_LOCK = "ebrx_th73wxw"
"""hashtextextended() maps it to the number of the lock that the pruning worker holds permanently."""
NOW = datetime.now(UTC)
COSTLIER_HASH = CHEAP_HASH.replace("t=1", "t=2")


def register(name: str) -> RegisterUser:
    data = Registration(name=name, password_hash=CHEAP_HASH)
    return RegisterUser.model_validate(attributes() | {"owner": 0, "credentials_version": 0, "data": data})


def renew(owner: int) -> RenewHash:
    data = RenewedHash(password_hash=COSTLIER_HASH)
    return RenewHash.model_validate(attributes() | {"owner": owner, "data": data})


def new_token(owner: int) -> CreateToken:
    data = TokenRequest(name="script", scopes=(Scope.READ,), lifetime_days=1, secret_digest=DIGEST)
    return CreateToken.model_validate(attributes() | {"owner": owner, "data": data})


def revoke(token_id: UUID, owner: int) -> RevokeToken:
    return RevokeToken.model_validate(attributes() | {"owner": owner, "data": TokenTarget(token_id=token_id)})


async def registered(connections: Connections, database: "Connection[Record]", name: str) -> int:
    """The id of a new user."""
    await apply_batch(connections, [register(name)])
    return int(await database.fetchval("select id from users where name = $1", name))


async def test_no_name_meets_a_permanently_held_lock(connections: Connections, worker_settings: WorkerSettings) -> None:
    pruner = await connect(worker_settings.database_url, "test")
    [(holds,)] = await TRY_LOCK.fetch(pruner)
    assert holds

    [outcome] = await apply_batch(connections, [register(NAMED_AS_HOUSEKEEPINGS_LOCK)])

    assert outcome.http_status == 201
    pruner.terminate()


def change(owner: int, name: str | None = None, password_hash: str | None = None, **envelope: Any) -> ChangeUser:
    data = UserChange(name=name, password_hash=password_hash)
    return ChangeUser.model_validate(attributes() | {"owner": owner} | envelope | {"data": data})


USER_ROW = "select id, credentials_version, password_hash, created_date, updated_date from users where name = 'Ada'"


@pytest.mark.parametrize("name", [None, "Ada"])
async def test_user_who_stays_the_same_is_not_written(
    connections: Connections, database: "Connection[Record]", name: str | None
) -> None:
    [registered] = await apply_batch(connections, [register("Ada")])
    before = await database.fetchrow(USER_ROW)
    assert before

    later = datetime.now(UTC) + timedelta(minutes=5)
    [outcome] = await apply_batch(connections, [change(before["id"], name, time=later)])

    assert (outcome.http_status, outcome.body) == (200, registered.body)
    assert await database.fetchrow(USER_ROW) == before


async def test_registration_and_rename_that_race_for_a_name_give_it_to_one_of_them(
    connections: Connections, database: "Connection[Record]"
) -> None:
    bob = await registered(connections, database, "Bob")
    for number in range(10):
        batches: list[list[Command]] = [
            [register(f"Ada{number}"), create(owner=bob)],
            [change(bob, f"ADA{number}"), create(owner=bob)],
        ]

        results = await asyncio.gather(*(apply_with_others(connections, batch) for batch in batches))

        assert sorted(outcomes[0].http_status for outcomes in results) in ([200, 409], [201, 409])
        assert [outcomes[1].http_status for outcomes in results] == [201, 201]
    assert await database.fetchval("select count(*) = count(distinct folded_name) from users where name is not null")
    assert await database.fetchval("select revision from users where id = $1", bob) == 30


async def test_name_that_an_operator_gives_away_meanwhile_is_taken(
    connections: Connections, database: "Connection[Record]"
) -> None:
    bob = await registered(connections, database, "Bob")
    correcting = database.transaction()
    await correcting.start()
    await database.execute("update users set name = 'Ada', folded_name = 'ada' where id = $1", bob)

    registering = asyncio.create_task(register_with_others(connections, "Ada"))
    await eventually(lambda: is_somebody_waiting(database))
    await correcting.commit()

    [outcome] = await registering
    assert (outcome.http_status, outcome.reason) == (409, "name_taken")


async def register_with_others(connections: Connections, name: str) -> list[Outcome]:
    """Like a worker, while others sometimes hold locks."""
    while True:
        with suppress(LockNotAvailableError):
            return await Applier(connections).apply([register(name)])


async def is_somebody_waiting(database: "Connection[Record]") -> bool:
    return bool(await database.fetchval("select exists (select from pg_locks where not granted)"))


@pytest.mark.parametrize(
    ("name", "password_hash"), [("ADA", None), ("Bob", None), (None, COSTLIER_HASH), ("Ada", COSTLIER_HASH)]
)
async def test_other_letters_and_every_password_are_a_change(
    connections: Connections, database: "Connection[Record]", name: str | None, password_hash: str | None
) -> None:
    ada, time = await registered(connections, database, "Ada"), datetime.now(UTC) + timedelta(minutes=5)

    [outcome] = await apply_batch(connections, [change(ada, name, password_hash, time=time)])

    assert json.loads(outcome.body or "")["updated_date"] == print_time(time)
    row = await database.fetchrow("select name, credentials_version, updated_date from users where id = $1", ada)
    assert tuple(row or ()) == (name or "Ada", 2 if password_hash else 1, time)


async def test_password_stays_new_where_the_same_batch_changes_nothing_more(
    connections: Connections, database: "Connection[Record]"
) -> None:
    ada = await registered(connections, database, "Ada")

    batch = [change(ada, password_hash=COSTLIER_HASH), change(ada, "Ada", credentials_version=2)]
    outcomes = await apply_batch(connections, batch)

    assert [outcome.http_status for outcome in outcomes] == [200, 200]
    assert await database.fetchval("select password_hash from users where id = $1", ada) == COSTLIER_HASH


async def test_token_that_is_revoked_is_not_made_again_under_its_id(
    connections: Connections, database: "Connection[Record]"
) -> None:
    ada = await registered(connections, database, "Ada")
    token = new_token(ada)
    await apply_batch(connections, [token])
    await database.execute("delete from commands")

    outcomes = await apply_batch(connections, [revoke(token.id, ada), token])

    assert [outcome.http_status for outcome in outcomes] == [204, 422]
    assert not await database.fetchval("select count(*) from personal_tokens")


async def test_renewed_hash_replaces_the_old_one_and_outdates_nothing(
    connections: Connections, database: "Connection[Record]"
) -> None:
    ada = await registered(connections, database, "Ada")
    before = await database.fetchrow("select * from users where id = $1", ada)

    [outcome] = await apply_batch(connections, [renew(ada)])

    after = await database.fetchrow("select * from users where id = $1", ada)
    assert outcome.status is OutcomeStatus.APPLIED
    assert before
    assert after
    assert dict(after) == dict(before) | {"password_hash": COSTLIER_HASH, "revision": 1}


async def test_hash_is_not_renewed_once_the_password_is_another(
    connections: Connections, database: "Connection[Record]"
) -> None:
    ada = await registered(connections, database, "Ada")
    new_password = {"owner": ada, "data": UserChange(password_hash=CHEAP_HASH)}

    outcomes = await apply_batch(connections, [ChangeUser.model_validate(attributes() | new_password), renew(ada)])

    assert [outcome.http_status for outcome in outcomes] == [200, 401]
    assert await database.fetchval("select password_hash from users where id = $1", ada) == CHEAP_HASH


ENDS = [UserChange(password_hash=CHEAP_HASH), NoData()]
"""A new password, and the deletion of the account."""


def end(owner: int, data: UserChange | NoData) -> ChangeUser | DeleteUser:
    model = ChangeUser if isinstance(data, UserChange) else DeleteUser
    return model.model_validate(attributes() | {"owner": owner, "data": data})


@pytest.mark.parametrize("data", ENDS)
@pytest.mark.parametrize("batches", [1, 2])
async def test_repetition_with_credentials_that_have_ended_gets_no_outcome_and_changes_none(
    connections: Connections, database: "Connection[Record]", data: UserChange | NoData, batches: int
) -> None:
    ada = await registered(connections, database, "Ada")
    first = create("secret", owner=ada)
    again = first.model_copy(update={"attempt_id": uuid4()})
    batch = [first, end(ada, data), again]

    if batches == 1:
        outcomes = await apply_batch(connections, batch)
    else:
        outcomes = [*await apply_batch(connections, batch[:2]), *await apply_batch(connections, batch[2:])]

    assert [outcome.reason for outcome in outcomes] == [None, None, "credentials_outdated"]
    assert (outcomes[2].http_status, outcomes[2].body, outcomes[2].attempt_id) == (401, None, None)
    stored = await database.fetchrow("select status, attempt_id from commands where id = $1", first.id)
    assert stored
    assert tuple(stored) == ("applied", first.attempt_id)
    if isinstance(data, UserChange):
        [current] = await apply_batch(connections, [again.model_copy(update={"credentials_version": 2})])
        assert (current.body, current.attempt_id) == (outcomes[0].body, first.attempt_id)
        assert await database.fetchval("select count(*) from notes") == 1


@pytest.mark.parametrize("data", ENDS)
async def test_redelivered_command_that_has_ended_its_own_credentials_gets_its_outcome(
    connections: Connections, database: "Connection[Record]", data: UserChange | NoData
) -> None:
    ada = await registered(connections, database, "Ada")
    batch = [create(owner=ada), end(ada, data)]

    outcomes = await apply_batch(connections, batch)

    assert {outcome.status for outcome in outcomes} == {OutcomeStatus.APPLIED}
    assert await apply_batch(connections, batch) == outcomes


async def test_repetition_with_credentials_that_have_ended_gets_outcomes_that_say_only_so(
    connections: Connections, database: "Connection[Record]"
) -> None:
    ada = await registered(connections, database, "Ada")
    batch = [end(ada, NoData()), create(owner=ada)]
    again = [command.model_copy(update={"attempt_id": uuid4()}) for command in batch]

    outcomes = await apply_batch(connections, batch)

    assert [outcome.http_status for outcome in outcomes] == [204, 401]
    assert await apply_batch(connections, again) == outcomes


@pytest.mark.parametrize("command", [create(owner=0), delete(1, owner=0), new_token(0)], ids=lambda each: each.type)
async def test_caller_without_an_account_can_only_register(
    connections: Connections, database: "Connection[Record]", command: Command
) -> None:
    [outcome] = await apply_batch(connections, [command])

    assert outcome.reason == "credentials_outdated"
    assert not await database.fetchval("select count(*) from notes")


async def test_nothing_is_kept_of_what_a_user_wrote_who_is_gone(
    connections: Connections, database: "Connection[Record]"
) -> None:
    def unreadable(command: Command) -> BadCommand:
        return BadCommand(command.id, "invalid_command", "what they wrote", find_envelope(command))

    await apply_batch(connections, [unreadable(create(owner=999))])
    await record_failure(connections, unreadable(create(owner=999)), "invalid_command")
    await record_failure(connections, delete(1, owner=999), "worker_killed")

    rows = await database.fetch("select status, reason, command from commands")
    assert set(map(tuple, rows)) == {("rejected", "credentials_outdated", None)}


def implicit_commands() -> list[Command]:
    """Commands about the account of the owner without a name, which no gateway sends."""
    hashed = UserChange(password_hash=CHEAP_HASH)
    return [
        ChangeUser.model_validate(attributes() | {"data": hashed}),
        ChangeUser.model_validate(attributes() | {"data": UserChange(name="implicit")}),
        DeleteUser.model_validate(attributes() | {"data": NoData()}),
        RevokeToken.model_validate(attributes() | {"data": TokenTarget(token_id=UUID(int=1))}),
        renew(1),
        new_token(1),
    ]


@pytest.mark.parametrize("command", implicit_commands(), ids=lambda command: command.type)
async def test_command_about_the_account_of_the_owner_without_a_name_is_rejected(
    connections: Connections, command: Command
) -> None:
    outcomes = await apply_batch(connections, [command, create()])

    assert [(each.status, each.reason) for each in outcomes] == [
        (OutcomeStatus.REJECTED, "credentials_outdated"),
        (OutcomeStatus.APPLIED, None),
    ]


async def test_command_whose_response_cannot_be_printed_fails_and_its_neighbors_are_applied(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    [registered] = await apply_batch(connections, [register("Ada")])
    owner = json.loads(registered.body or "")["id"]
    monkeypatch.delattr("worker.decisions.PublicToken")

    outcomes = await Applier(connections).apply([create(owner=owner), new_token(owner), create(owner=owner)])

    assert [(each.status, each.reason) for each in outcomes] == [
        (OutcomeStatus.APPLIED, None),
        (OutcomeStatus.FAILED, "handler_error"),
        (OutcomeStatus.APPLIED, None),
    ]
