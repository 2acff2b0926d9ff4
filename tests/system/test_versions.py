"""Gateways and workers of this version beside those of the previous one, on this version's schema.

An upgrade runs them in this order: migration, workers, gateways; a rollback in the opposite order.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from dev.backend import ROOT, Services
from tests.support import canaries
from tests.support.accounts import sign_up
from tests.support.harness import dated, decided
from tests.support.proxy import free_port
from tests.support.stack import TREES, Stack, running_stack
from tests.system.versions import BEFORE_LISTS as PREVIOUS
from tests.system.versions import unpack

FAILED = "select reason, command ->> 'type', owner_id is not null from commands where status = 'failed'"
EIGHT = 8
PRESENT_WORKER, PREVIOUS_WORKER = "present worker", "previous worker"


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source of the previous services."""
    folder = tmp_path_factory.mktemp("previous")
    try:
        unpack(PREVIOUS, folder)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"").decode().strip() or error
        pytest.skip(f"needs git and the history, which a shallow clone lacks: {reason}")
    return folder


@pytest.mark.parametrize(
    "workers", [[PRESENT_WORKER], [PREVIOUS_WORKER], [PRESENT_WORKER, PREVIOUS_WORKER]], ids=" and ".join
)
async def test_gateways_of_both_versions_serve_everything_with(
    workers: list[str], stack: Stack, previous: Path
) -> None:
    async with AsyncExitStack() as exits:
        if PREVIOUS_WORKER in workers:
            await exits.enter_async_context(previous_worker(stack, previous))
        if PRESENT_WORKER not in workers:
            await stack.worker.stop()
        older = await exits.enter_async_context(stack.second_gateway(previous))

        assert await offers_several_at_once(stack.client)
        assert not await offers_several_at_once(older)
        await serves(stack.client, beside=older)
        await serves(older, beside=stack.client)

    assert await stack.value("select count(*) from commands where status = 'failed'") == 0


async def test_worker_of_the_previous_version_fails_what_it_does_not_know_and_keeps_it_for_the_upgrade(
    stack: Stack, previous: Path
) -> None:
    several = {"items": [{"op": "create", **canaries.NOTE}, {"op": "create", "title": "Quill", "description": ""}]}
    async with previous_worker(stack, previous):
        await stack.worker.stop()
        failed = await stack.client.post("/notes/batch", json=several)

        assert (failed.status_code, failed.json()["code"]) == (500, "command_failed")
        assert [tuple(row) for row in await stack.query(FAILED)] == [("unknown_type", "notes.change", True)]
        assert (await stack.client.post("/notes/", json=canaries.NOTE)).status_code == 201  # others are applied
    await stack.worker.start()

    replayed = await asyncio.to_thread(operate, stack, "dead-letters", "replay", "--all")
    assert replayed.returncode == 0, replayed.stderr
    state = await decided(stack.client, failed.json()["command"])
    assert (state["status"], state["answer"]["status"]) == ("applied", 200)
    assert await stack.value("select count(*) from notes where title = 'Quill'") == 1


async def test_restore_that_a_worker_of_the_previous_version_has_failed_can_be_forced_after_the_upgrade(
    stack: Stack, previous: Path
) -> None:
    url = (await stack.client.post("/notes/", json=canaries.NOTE)).headers["Location"]
    await stack.client.delete(url)
    async with previous_worker(stack, previous):
        await stack.worker.stop()
        failed = await stack.client.post(f"{url}/restore")
        assert (failed.status_code, failed.json()["code"]) == (500, "command_failed")
        assert [tuple(row) for row in await stack.query(FAILED)] == [("unknown_type", "note.restore", True)]
    await stack.worker.start()

    refused = await asyncio.to_thread(operate, stack, "dead-letters", "replay", "--all")
    assert (refused.returncode, "superseded" in refused.stdout) == (1, True), refused.stdout
    forced = await asyncio.to_thread(operate, stack, "dead-letters", "replay", "--all", "--force")
    assert forced.returncode == 0, forced.stdout
    assert (await stack.client.get(url)).headers["ETag"] == '"2"'


async def test_notes_that_a_worker_of_the_previous_version_writes_have_a_history_and_no_trash(
    stack: Stack, previous: Path
) -> None:
    async with previous_worker(stack, previous):
        await stack.worker.stop()
        url = (await stack.client.post("/notes/", json=canaries.NOTE)).headers["Location"]
        await stack.client.patch(url, json={"title": "changed"})
        gone = (await stack.client.post("/notes/", json=canaries.NOTE)).headers["Location"]
        assert (await stack.client.delete(gone)).status_code == 204
    await stack.worker.start()

    versions = (await stack.client.get(f"{url}/versions")).json()
    assert [note["title"] for note in versions] == ["changed", canaries.NOTE["title"]]
    assert (await stack.client.get("/notes/trash")).json() == []
    assert (await stack.client.post(f"{gone}/restore")).status_code == 404


async def test_note_that_is_deleted_through_a_gateway_of_the_previous_version_can_be_restored(
    stack: Stack, previous: Path
) -> None:
    async with stack.second_gateway(previous) as older:
        created = await older.post("/notes/", json=canaries.NOTE)
        url = created.headers["Location"]
        assert (await older.delete(url)).status_code == 204

        assert [note["id"] for note in (await stack.client.get("/notes/trash")).json()] == [created.json()["id"]]
        restored = await stack.client.post(f"{url}/restore")
        assert dated((await older.get(url)).json()) == dated(restored.json())


@pytest.fixture
async def former_stack(
    database_url: str, servers: Services, queue_prefix: str, previous: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    """Both services of the previous version, without INKWELL_PARTITIONS."""
    for service in TREES:
        monkeypatch.setitem(TREES, service, previous)
    async with running_stack(database_url, servers, queue_prefix, previous, partitions="") as stack:
        yield stack


async def test_deployment_that_never_set_the_number_of_partitions_keeps_its_eight_through_an_upgrade_and_back(
    former_stack: Stack,
) -> None:
    stack, port = former_stack, free_port()
    assert (await stack.client.post("/notes/", json=canaries.NOTE)).status_code == 201

    await stack.worker.stop()
    queued = await stack.client.post("/notes/", json=canaries.NOTE, headers={"Prefer": "respond-async"})
    worker = stack.worker.twin(port, ROOT)
    await worker.start()
    async with stack.second_gateway(ROOT) as gateway:
        assert (await decided(stack.client, queued.headers["Location"]))["status"] == "applied"
        await serves(gateway, beside=stack.client)
        await serves(stack.client, beside=gateway)
        assert worker.events("number of partitions declared")[-1]["partitions"] == EIGHT
        assert stack.gateway.events("publishing")[-1]["partitions"] == EIGHT
        await worker.stop()
    await stack.worker.start()
    await serves(stack.client, beside=stack.client)

    assert await stack.value("select count(*) from commands where status = 'failed'") == 0


async def offers_several_at_once(gateway: httpx.AsyncClient) -> bool:
    """Whether it is of the current version."""
    return "/notes/batch" in (await gateway.get("/openapi.json")).json()["paths"]


@asynccontextmanager
async def previous_worker(stack: Stack, previous: Path) -> AsyncIterator[None]:
    """A worker of the previous version for the block."""
    worker = stack.worker.twin(free_port(), previous)
    await worker.start()
    try:
        yield
    finally:
        assert await worker.stop() == 0


async def serves(client: httpx.AsyncClient, beside: httpx.AsyncClient) -> None:
    """A new user does everything through one gateway; the other one answers the same, also to repeated requests."""
    headers = (await sign_up(client)).headers
    key = headers | {"Idempotency-Key": uuid4().hex}

    created = await client.post("/notes/", json=canaries.NOTE, headers=key)
    assert created.status_code == 201, created.text
    url = created.headers["Location"]
    assert dated((await beside.get(url, headers=headers)).json()) == dated(created.json())
    again = await beside.post("/notes/", json=canaries.NOTE, headers=key)
    assert (again.status_code, again.content) == (201, created.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    other = await beside.post("/notes/", json={"title": "other", "description": ""}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")

    replaced = await client.put(
        url, json={"title": "replaced", "description": ""}, headers=headers | {"If-Match": created.headers["ETag"]}
    )
    assert replaced.status_code == 200, replaced.text
    patched = await client.patch(url, json={"title": "patched"}, headers=headers)
    assert (patched.status_code, patched.headers["ETag"]) == (200, '"3"'), patched.text
    assert (await beside.get(url, headers=headers)).json()["title"] == "patched"

    accepted = await client.post("/notes/", json=canaries.NOTE, headers=headers | {"Prefer": "respond-async"})
    assert accepted.status_code == 202, accepted.text
    polled = await beside.get(accepted.headers["Location"], headers=headers | {"Prefer": "wait=10"})
    assert (polled.json()["status"], polled.json()["answer"]["status"]) == ("applied", 201)
    for gateway in (client, beside):
        listed = await gateway.get("/notes/", headers=headers)
        assert [note["title"] for note in listed.json()] == ["patched", canaries.NOTE["title"]]

    assert (await client.delete(url, headers=headers)).status_code == 204
    assert (await beside.get(url, headers=headers)).status_code == 404


def operate(stack: Stack, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the current worker's command line."""
    environment = {**os.environ, **stack.environment}
    command = [sys.executable, "-m", "worker", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
