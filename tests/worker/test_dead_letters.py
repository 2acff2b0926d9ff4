"""The operator's commands for dead letters: list, show, replay once the cause is fixed, or discard."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import httpx
import pytest
from aio_pika.exceptions import ChannelPreconditionFailed
from asyncpg import Connection, Record

from dev.backend import ROOT, Services
from gateway.settings import GatewaySettings
from shared.connections import Connections
from shared.contracts import (
    BadCommand,
    Command,
    CreateItem,
    DeleteItem,
    PatchItem,
    encode_batch,
    encode_command,
)
from shared.topology import Topology
from tests.support import harness
from tests.support.applying import apply_with_others
from tests.support.commands import create, delete, replace, several
from tests.support.harness import eventually
from tests.support.operator import Operator
from worker import dead_letters
from worker.apply import ApplyOptions, apply_batch, record_failure
from worker.command_line import operate, read_arguments
from worker.failures import Applier
from worker.settings import WorkerSettings

POISONED = "alter table notes add constraint poison check (title <> 'poison')"
CURED = "alter table notes drop constraint poison"
SECRET = "what a user wrote"


async def fail(connections: Connections, *commands: Command | BadCommand) -> None:
    """Turns the commands into dead letters."""
    for command in commands:
        await record_failure(connections, command, "data_error")


@pytest.mark.usefixtures("worker")
async def test_poison_is_listed_shown_and_replayed_and_its_url_says_failed_and_then_applied(
    gateway_settings: GatewaySettings, database: "Connection[Record]", operator: Operator
) -> None:
    await database.execute(POISONED)
    async with harness.gateway(gateway_settings) as client:
        failed = await client.post("/notes/", json={"title": "poison", "description": SECRET})
        url = failed.json()["command"]
        assert await state(client, url) == ("failed", 500)

        _, [letter], _ = await operator("dead-letters", "list")
        assert (letter["type"], letter["owner"], letter["reason"]) == ("note.create", 1, "data_error")
        assert SECRET not in str(letter)
        _, [shown], _ = await operator("dead-letters", "show", letter["id"])
        assert shown["command"]["data"] == {"title": "poison", "description": SECRET}
        code, [result], _ = await operator("dead-letters", "replay", letter["id"])
        assert (code, result["result"], result["reason"]) == (1, "failed", "data_error")
        assert await state(client, url) == ("failed", 500)
        _, [letter], _ = await operator("dead-letters", "list")
        assert letter["replayed_at"]

        await database.execute(CURED)
        code, [result], _ = await operator("dead-letters", "replay", letter["id"])
        assert (code, result["result"]) == (0, "applied")
        assert await state(client, url) == ("applied", 201)
    assert await database.fetchval("select count(*) from notes") == 1
    assert await operator("dead-letters", "list") == (0, [], "")
    _, [command], _ = await operator("commands", "show", letter["id"])
    assert (command["status"], command["http_status"], "command" in command) == ("applied", 201, False)


@pytest.mark.usefixtures("worker")
async def test_replays_that_fail_again_do_not_hold_up_the_other_commands(
    connections: Connections,
    gateway_settings: GatewaySettings,
    database: "Connection[Record]",
    operator: Operator,
) -> None:
    await database.execute(POISONED)
    await fail(connections, create("poison"), create("poison"), create("poison"))

    for _ in range(2):
        _, results, _ = await operator("dead-letters", "replay", "--all")
        assert [result["result"] for result in results] == ["failed"] * 3
    async with harness.gateway(gateway_settings) as client:
        assert (await client.post("/notes/", json={"title": "good", "description": ""})).status_code == 201


@pytest.mark.usefixtures("worker")
async def test_replayed_twice_at_the_same_time_is_applied_once(
    connections: Connections,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
) -> None:
    letters = [create() for _ in range(10)]
    await fail(connections, *letters)
    arguments = read_arguments(["dead-letters", "replay", "--all"])

    codes = await asyncio.gather(*(operate(arguments, worker_settings) for _ in range(3)))

    assert set(codes) <= {0, 1}  # 1: it was applied before this operator replayed it
    assert await database.fetchval("select count(*) from notes") == len(letters)
    assert await database.fetchval("select count(*) from commands where status = 'applied'") == len(letters)


@pytest.mark.usefixtures("worker")
async def test_replay_over_a_later_command_is_refused_unless_forced(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    await apply_batch(connections, [create("first")])
    letter = replace(1, "from the dead letter")
    await fail(connections, letter)
    await apply_batch(connections, [replace(1, "later")])

    for arguments in (["--dry-run"], []):
        code, [refused], _ = await operator("dead-letters", "replay", letter.id, *arguments)
        assert (code, refused["result"]) == (1, "refused")
        assert "--force" in refused["reason"]
    assert await database.fetchval("select title from notes") == "later"

    code, [forced], _ = await operator("dead-letters", "replay", letter.id, "--force")
    assert (code, forced["result"]) == (0, "applied")
    assert await database.fetchval("select title from notes") == "from the dead letter"


async def test_replay_that_a_later_command_overtakes_stays_failed_however_often_it_comes(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create("first")])
    letter = replace(1, "from the dead letter")
    await fail(connections, letter)
    await apply_batch(connections, [replace(1, "later")])

    for _ in range(2):
        replay = letter.model_copy(update={"replayed_at": datetime.now(UTC)})
        [outcome] = await apply_batch(connections, [replay])
        assert (outcome.status, outcome.reason) == ("failed", "superseded")
    assert await database.fetchval("select title from notes") == "later"


async def test_several_writes_that_an_older_worker_could_not_read_are_replayed(connections: Connections) -> None:
    letter = several(CreateItem(title="new", description=""))
    await apply_batch(connections, [BadCommand(letter.id, "unknown_type", letter.model_dump_json())])

    replay = letter.model_copy(update={"replayed_at": datetime.now(UTC)})
    [outcome] = await apply_batch(connections, [replay])

    assert outcome.status == "applied"


async def test_replay_of_several_writes_is_superseded_by_a_later_command_on_any_of_their_notes(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create("one"), create("two")])
    letter = several(PatchItem(note_id=1, title="changed"), DeleteItem(note_id=2))
    await fail(connections, letter)
    await apply_batch(connections, [replace(2, "later")])

    replay = letter.model_copy(update={"replayed_at": datetime.now(UTC)})
    [outcome] = await apply_batch(connections, [replay])
    assert (outcome.status, outcome.reason) == ("failed", "superseded")

    [forced] = await apply_batch(connections, [replay.model_copy(update={"replay_forced": True})])
    assert forced.status == "applied"
    assert [row["title"] for row in await database.fetch("select title from notes")] == ["changed"]


async def test_replay_of_several_writes_to_untouched_notes_is_applied(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create("one"), create("two")])
    letter = several(PatchItem(note_id=1, title="changed"), DeleteItem(note_id=2))
    await fail(connections, letter)
    await apply_batch(connections, [create("another")])

    [outcome] = await apply_batch(connections, [letter.model_copy(update={"replayed_at": datetime.now(UTC)})])

    assert outcome.status == "applied"
    assert await database.fetchval("select count(*) from notes") == 2


@pytest.mark.usefixtures("worker")
async def test_force_counts_for_one_replay_only(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    await apply_batch(connections, [create("first")])
    letter = replace(1, "poison")
    await fail(connections, letter)
    await apply_batch(connections, [replace(1, "later")])
    await database.execute(POISONED)
    _, [forced], _ = await operator("dead-letters", "replay", letter.id, "--force")
    assert forced["result"] == "failed"
    await apply_batch(connections, [replace(1, "later still")])
    await database.execute(CURED)

    code, [refused], _ = await operator("dead-letters", "replay", letter.id)

    assert (code, refused["result"]) == (1, "refused")
    stored = await database.fetchval("select command from commands where id = $1", letter.id)
    assert not json.loads(dead_letters.build_replay(stored, datetime.now(UTC), force=False))["replayforced"]


@pytest.mark.usefixtures("worker")
async def test_discarded_is_rejected_for_ever_and_its_url_says_so(
    gateway_settings: GatewaySettings, database: "Connection[Record]", operator: Operator
) -> None:
    await database.execute(POISONED)
    async with harness.gateway(gateway_settings) as client:
        key = {"Idempotency-Key": "one"}
        poison = {"title": "poison", "description": SECRET}
        failed = await client.post("/notes/", json=poison, headers=key)
        _, [letter], _ = await operator("dead-letters", "list")

        code, [result], _ = await operator("dead-letters", "discard", letter["id"])

        assert (code, result["result"]) == (0, "discarded")
        assert await state(client, failed.json()["command"]) == ("rejected", 410)
        await database.execute(CURED)
        again = await client.post("/notes/", json=poison, headers=key)
        assert (again.status_code, again.json()["code"]) == (410, "discarded")
    assert await database.fetchval("select count(*) from notes") == 0
    assert SECRET not in str(await database.fetch("select * from commands"))
    for verb in ("discard", "replay"):
        code, [refused], _ = await operator("dead-letters", verb, letter["id"])
        assert (code, refused["result"]) == (1, "refused")


async def test_replay_that_is_under_way_when_its_command_is_discarded_has_no_effect(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    letter = create()
    await fail(connections, letter)
    await operator("dead-letters", "discard", "--all")

    [outcome] = await apply_batch(connections, [letter.model_copy(update={"replayed_at": datetime.now(UTC)})])

    assert (outcome.status, outcome.reason) == ("rejected", "discarded")
    assert await database.fetchval("select count(*) from notes") == 0


DISCARD_ALL = ("dead-letters", "discard", "--all")


@pytest.mark.parametrize("first", ["replay", "discard"])
async def test_replay_and_discard_at_the_same_time_are_one_after_the_other(
    connections: Connections, database: "Connection[Record]", operator: Operator, first: str
) -> None:
    letter = create()
    await fail(connections, letter)
    replay = letter.model_copy(update={"replayed_at": datetime.now(UTC)})
    locking = database.transaction()
    await locking.start()
    await database.execute("select from users for update")

    async def start(verb: str) -> asyncio.Task[Any]:
        running: Any = apply_with_others(connections, [replay]) if verb == "replay" else operator(*DISCARD_ALL)
        task = asyncio.create_task(running)
        await asyncio.wait([task], timeout=1)
        assert not task.done()  # each waits for the owner
        return task

    tasks = {verb: await start(verb) for verb in sorted(("replay", "discard"), key=lambda verb: verb != first)}
    await locking.commit()

    [outcome], (code, results, _) = await tasks["replay"], await tasks["discard"]
    notes = await database.fetchval("select count(*) from notes")
    became = (outcome.status, outcome.reason, notes, code, results[0]["result"])
    assert became in {
        ("applied", None, 1, 1, "not failed any more"),
        ("rejected", "discarded", 0, 0, "discarded"),
    }
    assert await database.fetchval("select revision from users") in {2, 3}


@pytest.mark.parametrize(("verb", "result"), [("replay", "would be sent again"), ("discard", "would be discarded")])
@pytest.mark.usefixtures("worker")
async def test_dry_run_changes_nothing(
    connections: Connections, database: "Connection[Record]", operator: Operator, verb: str, result: str
) -> None:
    await fail(connections, create(), delete(1))
    before = await database.fetch("select * from commands order by id")

    code, results, _ = await operator("dead-letters", verb, "--all", "--dry-run")

    assert (code, [each["result"] for each in results]) == (0, [result] * 2)
    await asyncio.sleep(0.5)
    assert await database.fetch("select * from commands order by id") == before


@pytest.mark.usefixtures("worker")
async def test_what_is_unknown_or_not_failed_is_reported_and_does_not_stop_the_others(
    connections: Connections, operator: Operator
) -> None:
    unknown, done, letter = uuid4(), create(), create()
    await apply_batch(connections, [done])
    await fail(connections, letter)

    code, results, _ = await operator("dead-letters", "replay", unknown, done.id, letter.id, letter.id)

    became = {UUID(each["id"]): each["result"] for each in results}
    assert (code, became) == (1, {unknown: "refused", done.id: "refused", letter.id: "applied"})
    for verb in (["dead-letters", "show"], ["commands", "show"]):
        assert (await operator(*verb, unknown))[0] == 1
    assert "applied" in (await operator("dead-letters", "show", done.id))[2]


@pytest.mark.usefixtures("worker")
async def test_content_that_became_readable_is_replayed_and_one_without_an_owner_is_not(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    readable, nobodys = create("after an upgrade"), uuid4()
    bad = BadCommand(readable.id, "invalid_command", readable.model_dump_json(exclude_none=True), readable)
    await apply_batch(connections, [bad, BadCommand(nobodys, "unknown_type", json.dumps({"id": str(nobodys)}))])

    code, results, _ = await operator("dead-letters", "replay", "--all")

    became = {UUID(each["id"]): each["result"] for each in results}
    assert (code, became) == (1, {readable.id: "applied", nobodys: "refused"})
    assert await database.fetchval("select string_agg(title, ',') from notes") == "after an upgrade"


@pytest.mark.usefixtures("worker")
async def test_command_that_waited_too_long_is_failed_and_its_replay_is_applied(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    old = create(time=datetime.now(UTC) - timedelta(days=4), may_expire=True)
    [outcome] = await Applier(connections, ApplyOptions(timedelta(days=3))).apply([old])
    assert (outcome.status, outcome.reason) == ("failed", "expired")

    code, [result], _ = await operator("dead-letters", "replay", old.id)

    assert (code, result["result"]) == (0, "applied")
    assert await database.fetchval("select count(*) from notes") == 1


async def test_replay_without_a_worker_is_not_decided_yet(
    worker_settings: WorkerSettings, connections: Connections, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness.worker(worker_settings):
        pass  # it has declared the queues
    monkeypatch.setattr(dead_letters, "QUIET_SECONDS", 0.5)
    letter = create()
    await fail(connections, letter)

    code, [result], _ = await operator("dead-letters", "replay", letter.id)

    assert (code, result["result"]) == (1, "not decided yet")
    async with harness.worker(worker_settings):
        await eventually(lambda: is_applied(operator, letter.id))


async def is_applied(operator: Operator, command_id: UUID) -> bool:
    _, [command], _ = await operator("commands", "show", command_id)
    return bool(command["status"] == "applied")


@pytest.mark.parametrize("away", ["database_url", "broker_url"])
async def test_server_that_is_away_is_one_sentence_and_changes_nothing(
    worker_settings: WorkerSettings, connections: Connections, operator: Operator, away: str
) -> None:
    await fail(connections, create())
    scheme = "postgresql" if away == "database_url" else "amqp"
    nowhere = WorkerSettings.model_validate(
        worker_settings.model_dump() | {away: f"{scheme}://me:{SECRET.replace(' ', '-')}@127.0.0.1:1/x"}
    )

    code, results, error = await operator("dead-letters", "replay", "--all", settings=nowhere)

    assert (code, results, error.count("\n")) == (1, [], 1)
    assert ("Postgres" if away == "database_url" else "broker") in error
    assert SECRET.replace(" ", "-") not in error
    assert len((await operator("dead-letters", "list"))[1]) == 1


async def test_replay_for_which_the_broker_has_no_queue_is_not_sent(
    connections: Connections, operator: Operator
) -> None:
    await fail(connections, create())

    code, results, error = await operator("dead-letters", "replay", "--all")

    assert (code, results) == (1, [])
    assert "broker" in error


async def test_process_prints_a_table_without_what_users_wrote(
    worker_settings: WorkerSettings, connections: Connections
) -> None:
    letter = create(SECRET)
    await fail(connections, letter)

    listed = await asyncio.to_thread(run, worker_settings, "dead-letters", "list")
    shown = await asyncio.to_thread(run, worker_settings, "dead-letters", "show", str(letter.id))

    assert listed.stdout.splitlines()[0].split("  ")[0] == "id"
    assert str(letter.id) in listed.stdout
    assert "data_error" in listed.stdout
    assert SECRET not in listed.stdout
    assert SECRET in shown.stdout
    assert (listed.returncode, listed.stderr, shown.returncode, shown.stderr) == (0, "", 0, "")


@pytest.mark.usefixtures("database")
async def test_process_says_that_there_are_no_dead_letters(worker_settings: WorkerSettings) -> None:
    listed = await asyncio.to_thread(run, worker_settings, "dead-letters", "list")

    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "", "there are no dead letters\n")


@pytest.mark.parametrize(
    "arguments", [["dead-letters"], ["commands"], ["dead-letters", "replay"], ["dead-letters", "show", "no-id"], ["x"]]
)
def test_wrong_arguments_are_named_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        read_arguments(arguments)

    assert exited.value.code == 2
    assert "error: " in capsys.readouterr().err


def run(settings: WorkerSettings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {
        "INKWELL_DATABASE_URL": str(settings.database_url.get_secret_value()),
        "INKWELL_BROKER_URL": str(settings.broker_url.get_secret_value()),
    }
    command = [sys.executable, "-m", "worker", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


async def state(client: httpx.AsyncClient, url: str) -> tuple[str, int]:
    response = (await client.get(url)).json()
    return response["status"], response["answer"]["status"]


@pytest.mark.usefixtures("worker")
async def test_replay_that_another_user_has_published_is_an_ordinary_delivery(
    servers: Services, worker_settings: WorkerSettings, connections: Connections, operator: Operator
) -> None:
    if not servers.has_broker_users:
        pytest.skip("INKWELL_BROKER_URL names a RabbitMQ in which there is one user for both services")
    failed, topology = create("forged"), Topology.of(worker_settings)
    await fail(connections, failed)
    replay = dead_letters.build_replay(encode_command(failed).decode(), datetime.now(UTC), force=True)
    async with await aio_pika.connect(servers.broker_url_of("gateway")) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(topology.commands_exchange, ensure=False)
        for user in (None, "inkwell_gateway"):
            message = aio_pika.Message(encode_batch([replay]), user_id=user)
            await exchange.publish(message, topology.command_queue(0))
        forged = aio_pika.Message(encode_batch([replay]), user_id="inkwell_worker")
        with pytest.raises(ChannelPreconditionFailed):  # the broker does not vouch for it
            await exchange.publish(forged, topology.command_queue(0))

    async with await aio_pika.connect(servers.broker_url_of("worker")) as connection:
        channel = await connection.channel()
        good = aio_pika.Message(encode_batch([encode_command(create("behind it"))]))
        await channel.default_exchange.publish(good, topology.command_queue(0))
    async with connections.acquire() as session:
        await eventually(lambda: session.fetchval("select count(*) from notes where title = 'behind it'"))
        assert not await session.fetchval("select count(*) from notes where title = 'forged'")

    code, [row], _ = await operator("dead-letters", "replay", failed.id)
    assert (code, row["result"]) == (0, "applied")


def test_replay_is_no_larger_than_what_the_gateway_sent() -> None:
    text = "🖋\ud800".encode(errors="surrogatepass").decode(errors="surrogatepass")
    content = json.dumps({"data": {"title": text * 1000}})

    replay = dead_letters.build_replay(content, datetime.now(UTC), force=False)

    assert json.loads(replay)["data"] == json.loads(content)["data"]
    assert len(replay) < 1000 * 10 + 200
