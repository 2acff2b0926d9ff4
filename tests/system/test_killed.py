"""The services are killed with SIGKILL at the worst moments."""

import asyncio
import os
import random
import sys

from gateway.settings import GatewaySettings
from gateway.writes.command_urls import CommandUrls
from shared.contracts import CreateNote
from tests.support.commands import create
from tests.support.harness import eventually
from tests.support.stack import Load, Process, Stack, check

KILLS = int(os.environ.get("KILLS", "4"))
SLOW_COMMIT = """
create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(2); return null; end $$;
create constraint trigger slow after insert on notes initially deferred
  for each row when (new.title = 'slow') execute function slow();
"""


async def test_worker_killed_under_load_again_and_again_loses_and_repeats_nothing(stack: Stack) -> None:
    await stack.slow_down_stores(0.05)
    async with Load(stack.client).running() as load:
        kills_with_work_in_hand = kills = 0
        while kills_with_work_in_hand < KILLS:
            kills_with_work_in_hand += await kill_while_it_settles(stack)
            kills += 1
            assert kills < 3 * KILLS, "the kills hardly ever land in the middle"

    await check(load, stack)


async def test_worker_killed_while_it_does_several_writes_at_once_does_all_or_none(stack: Stack) -> None:
    await stack.slow_down_stores(0.05)

    async def write(number: int) -> None:
        items = [{"op": "create", "title": f"{number}", "description": ""}] * 100
        headers = {"Idempotency-Key": f"batch-{number}", "Prefer": "respond-async"}
        response = await stack.client.post("/notes/batch", json={"items": items}, headers=headers)
        assert response.status_code == 202
        await asyncio.sleep(0.02)

    async def kill() -> None:
        for _ in range(KILLS // 2):
            await kill_while_it_settles(stack)

    killing = asyncio.create_task(kill())
    batches = 0
    while not killing.done():
        batches += 1
        await write(batches)

    await eventually(lambda: is_applied(stack, batches), within_seconds=60)
    halves = "select count(*) from (select title from notes group by title having count(*) <> 100) as halves"
    assert await stack.value(halves) == 0
    assert await stack.value("select count(*) from notes") == 100 * batches
    assert await stack.value("select count(distinct xmin::text) <= count(distinct title) from notes")


async def test_worker_killed_between_commit_and_acknowledgement_repeats_nothing(stack: Stack) -> None:
    stack.links["worker-broker"].freeze("up")  # the worker's acknowledgement is lost
    created = await stack.client.post("/notes/", json={"title": "once", "description": ""})
    await eventually(lambda: is_applied(stack, 1))
    await stack.worker.kill()
    stack.links["worker-broker"].thaw()
    await stack.links["worker-broker"].cut()
    await stack.links["worker-broker"].start()

    before = len(stack.worker.events())
    await stack.worker.start()

    await eventually(lambda: redelivered(stack, before))
    assert await stack.value("select count(*) from notes") == 1
    assert created.status_code in (201, 202)


async def test_worker_killed_during_commit_repeats_nothing(stack: Stack) -> None:
    await stack.script(SLOW_COMMIT)
    accepted = await stack.client.post("/notes/", json={"title": "slow", "description": ""})
    assert accepted.status_code == 202

    async def committing() -> bool:
        running = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
        return bool(await stack.value(running))

    await eventually(committing)
    await stack.worker.kill()
    before = len(stack.worker.events())
    await stack.worker.start()

    await eventually(lambda: redelivered(stack, before))
    await eventually(lambda: is_applied(stack, 1))
    assert await stack.value("select count(*) from notes") == 1


async def test_gateway_killed_between_confirm_and_response_leaves_one_effect_and_a_url_with_the_outcome(
    stack: Stack,
) -> None:
    await stack.worker.stop()
    writing = asyncio.create_task(stack.client.post("/notes/", json={"title": "orphan", "description": ""}))
    await asyncio.sleep(0.3)
    await stack.gateway.kill()
    await asyncio.gather(writing, return_exceptions=True)
    assert isinstance(writing.exception(), Exception)

    await stack.worker.start()
    await eventually(lambda: is_applied(stack, 1))
    await stack.gateway.start()

    [row] = await stack.query("select * from commands where type = 'note.create'")
    said = {"fingerprint": row["fingerprint"], "time": row["issued_at"], "owner": row["owner_id"]}
    command: CreateNote = create(id=row["id"], **said)
    environment = {name.removeprefix("INKWELL_").lower(): value for name, value in stack.environment.items()}
    url = CommandUrls(GatewaySettings.model_validate(environment)).url(command, confirmed=True)
    assert (await stack.client.get(url)).json()["status"] == "applied"
    assert await stack.value("select count(*) from notes") == 1


async def test_command_that_kills_every_worker_is_failed_and_its_neighbors_are_applied(stack: Stack) -> None:
    await stack.worker.stop()
    for title in ("before", "deadly", "after"):
        assert (await stack.client.post("/notes/", json={"title": title, "description": ""})).status_code == 202
    deadly = stack.worker.variant([sys.executable, "-m", "tests.system.deadly_worker"])

    deaths = 0
    while not await is_failed(stack):
        await deadly.start(ready=False)
        await eventually(lambda: is_dead_or_has_failed_it(deadly, stack))
        deaths += not deadly.running
    await eventually(lambda: is_applied(stack, 2))

    # The first deliveries leave no mark, unless RabbitMQ 4 counts a death twice; and one death to spare.
    assert 5 <= deaths <= 10
    assert await stack.value("select reason from commands where status = 'failed'") == "worker_killed"
    assert await stack.value("select string_agg(title, ',' order by id) from notes") == "before,after"
    await deadly.kill()


async def kill_while_it_settles(stack: Stack) -> bool:
    """Kills the worker at a random moment; returns whether it held a message, which was then redelivered."""
    applied = len(stack.worker.events("batch applied"))

    async def works() -> bool:
        return len(stack.worker.events("batch applied")) > applied

    await eventually(works)
    await asyncio.sleep(random.uniform(0, 0.1))  # noqa: S311 - no secret
    await stack.worker.kill()
    before = len(stack.worker.events())
    await stack.worker.start()

    async def works_again() -> bool:
        return any(event.get("event") == "batch applied" for event in stack.worker.events()[before:])

    await eventually(works_again)
    return await redelivered(stack, before)


async def redelivered(stack: Stack, start: int) -> bool:
    return any(event.get("redelivered", 0) > 0 for event in stack.worker.events()[start:])


async def is_applied(stack: Stack, count: int) -> bool:
    of_notes = "select count(*) from commands where status = 'applied' and type like 'note%'"  # not the registration
    return bool(await stack.value(of_notes) >= count)


async def is_dead_or_has_failed_it(worker: Process, stack: Stack) -> bool:
    return not worker.running or await is_failed(stack)


async def is_failed(stack: Stack) -> bool:
    return bool(await stack.value("select count(*) from commands where status = 'failed'"))
