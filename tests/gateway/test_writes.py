"""The responses to writes while something behind the gateway is slow, down or broken."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from asyncpg import Connection, Record
from sqlalchemy import make_url
from yarl import URL

from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.writes.command_urls import CommandUrls
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.commands import create
from tests.support.harness import eventually
from tests.support.proxy import Proxy, proxy_to
from worker.settings import WorkerSettings

WAIT_SECONDS = 0.3
DEADLINE_SECONDS = 1.5


@pytest.fixture
async def broker_link(gateway_settings: GatewaySettings) -> AsyncIterator[Proxy]:
    url = URL(str(gateway_settings.broker_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5672) as proxy:
        yield proxy


@pytest.fixture
async def database_link(gateway_settings: GatewaySettings) -> AsyncIterator[Proxy]:
    url = make_url(str(gateway_settings.database_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5432) as proxy:
        yield proxy


def through(
    settings: GatewaySettings, *, broker: Proxy | None = None, database: Proxy | None = None
) -> GatewaySettings:
    """Settings with short timeouts, with some links through a proxy."""
    values = settings.model_dump() | {
        "wait_seconds": WAIT_SECONDS,
        "publish_timeout_seconds": DEADLINE_SECONDS,
        "read_timeout_seconds": DEADLINE_SECONDS,
    }
    if broker:
        url = URL(str(settings.broker_url.get_secret_value()))
        values["broker_url"] = str(url.with_host("127.0.0.1").with_port(broker.port))
    if database:
        dsn = make_url(str(settings.database_url.get_secret_value()))
        values["database_url"] = dsn.set(host="127.0.0.1", port=database.port).render_as_string(hide_password=False)
    return GatewaySettings.model_validate(values)


async def test_write_that_outlasts_its_wait_is_accepted_and_its_url_has_the_original_response(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.gateway(through(gateway_settings)) as client:
        accepted = await client.post("/notes/", json=NOTE)

        assert accepted.status_code == 202
        assert accepted.headers["retry-after"] == "1"
        url = accepted.headers["location"]
        pending = await client.get(url)
        assert (pending.status_code, pending.json()["status"]) == (200, "pending")
        assert pending.json() == accepted.json()

        async with harness.worker(worker_settings):
            state = await eventually(lambda: has_status(client, url, "applied"))

        assert state["answer"]["status"] == 201
        note = await client.get(state["answer"]["headers"]["Location"])
        assert state["answer"]["body"] == note.json()


async def test_url_of_a_rejected_write_says_so(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.gateway(through(gateway_settings)) as client:
        url = (await client.delete("/notes/1")).headers["location"]

        async with harness.worker(worker_settings):
            state = await eventually(lambda: has_status(client, url, "rejected"))

    assert (state["answer"]["status"], state["answer"]["body"]["code"]) == (404, "note_not_found")


async def test_failed_write_is_answered_500_with_the_url_that_says_so(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    await database.execute("alter table notes add constraint poison check (title <> 'poison')")
    async with harness.worker(worker_settings), harness.gateway(gateway_settings) as client:
        failed = await client.post("/notes/", json=NOTE | {"title": "poison"})

        assert (failed.status_code, failed.json()["code"]) == (500, "command_failed")
        state = (await client.get(failed.json()["command"])).json()
    assert (state["status"], state["answer"]["status"]) == ("failed", 500)


async def test_without_the_broker_reads_work_and_writes_are_certainly_not_accepted(
    gateway_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    broker_link: Proxy,
    database: "Connection[Record]",
) -> None:
    async with (
        harness.worker(worker_settings),
        harness.gateway(through(gateway_settings, broker=broker_link)) as client,
    ):
        path = (await eventually(lambda: created(client))).headers["location"]
        await broker_link.cut()
        await eventually(lambda: has_no_broker(client))

        refused = await client.post("/notes/", json=NOTE | {"title": "refused"})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_accepted")
        assert refused.headers["retry-after"]
        assert refused.elapsed < timedelta(seconds=DEADLINE_SECONDS + 1)
        assert (await client.get(path)).status_code == 200
        assert (await client.get("/health/ready")).json()["dependencies"]["broker"] == "down"

        await broker_link.start()
        await eventually(lambda: created(client))
    assert await database.fetchval("select count(*) from notes where title = 'refused'") == 0


async def test_broker_that_hangs_up_at_any_point_of_the_handshake_is_tried_again(
    gateway_settings: GatewaySettings, broker_link: Proxy
) -> None:
    async with harness.gateway(through(gateway_settings, broker=broker_link)) as client:
        for received_bytes in (0, 400, 563, 570, 620):
            broker_link.hang_up_after_bytes = received_bytes
            await broker_link.cut()
            await broker_link.start()
            await eventually(lambda: hung_up(broker_link))
        await eventually(lambda: has_broker(client))
        assert (await client.post("/notes/", json=NOTE)).status_code == 202


async def hung_up(link: Proxy) -> bool:
    return link.hang_up_after_bytes is None


async def test_starts_without_the_broker(gateway_settings: GatewaySettings, broker_link: Proxy) -> None:
    await broker_link.cut()
    async with harness.gateway(through(gateway_settings, broker=broker_link)) as client:
        assert (await client.get("/notes/")).json() == []
        await broker_link.start()
        await eventually(lambda: has_broker(client))
        assert (await client.post("/notes/", json=NOTE)).status_code == 202


async def test_without_postgres_writes_are_accepted_and_reads_are_to_be_retried(
    gateway_settings: GatewaySettings, database_link: Proxy
) -> None:
    await database_link.cut()
    async with harness.gateway(through(gateway_settings, database=database_link)) as client:
        await eventually(lambda: has_broker(client))
        assert (await client.post("/notes/", json=NOTE)).status_code == 202
        read = await client.get("/notes/")
        assert (read.status_code, read.json()["code"]) == (503, "database_unavailable")
        assert read.headers["retry-after"]

        await database_link.start()
        assert (await client.get("/notes/")).json() == []


async def test_postgres_that_does_not_answer_does_not_hold_a_read_beyond_its_deadline(
    gateway_settings: GatewaySettings, database_link: Proxy
) -> None:
    async with harness.gateway(through(gateway_settings, database=database_link)) as client:
        assert (await client.get("/notes/")).status_code == 200
        database_link.freeze()
        reads = await asyncio.gather(*(client.get("/notes/") for _ in range(20)))

        assert {read.status_code for read in reads} == {503}
        assert max(read.elapsed for read in reads) < timedelta(seconds=DEADLINE_SECONDS + 1)
        database_link.thaw()
        assert (await eventually(lambda: listed(client))).json() == []


async def test_write_whose_confirm_is_lost_is_unconfirmed_and_its_url_has_the_outcome(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, broker_link: Proxy
) -> None:
    async with harness.gateway(through(gateway_settings, broker=broker_link)) as client:
        await eventually(lambda: has_broker(client))
        broker_link.freeze("down")

        unconfirmed = await client.post("/notes/", json=NOTE)

        assert (unconfirmed.status_code, unconfirmed.json()["code"]) == (504, "unconfirmed")
        assert "retry-after" not in unconfirmed.headers
        url = unconfirmed.json()["command"]
        assert (await client.get(url)).json()["status"] == "unknown"
        async with harness.worker(worker_settings):
            await eventually(lambda: has_status(client, url, "applied"))


async def test_write_whose_confirm_comes_while_the_gateway_drains_does_not_wait_for_its_outcome(
    gateway_settings: GatewaySettings, broker_link: Proxy
) -> None:
    app = create_app(through(gateway_settings, broker=broker_link))
    async with harness.serving(app) as base_url, httpx.AsyncClient(base_url=base_url, timeout=40) as client:
        await eventually(lambda: has_broker(client))
        broker_link.freeze("down")
        write = asyncio.create_task(client.post("/notes/", json=NOTE, headers={"Prefer": "wait=30"}))
        await asyncio.sleep(0.3)
        assert app.front.resources
        app.front.resources.replies.drain()
        broker_link.thaw()

        response = await write
    assert response.status_code == 202
    assert response.elapsed < timedelta(seconds=DEADLINE_SECONDS)


async def test_lost_reply_is_made_up_for_by_one_look_at_the_database(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: object) -> None:
        """Replies are hints: this one gets lost."""

    monkeypatch.setattr("worker.reply_sender.ReplySender.reply", lose)
    async with harness.worker(worker_settings), harness.gateway(through(gateway_settings)) as client:
        await eventually(lambda: created(client))


async def test_burst_is_answered_completely_each_with_its_own_note(client: httpx.AsyncClient) -> None:
    titles = [f"note {number}" for number in range(100)]
    responses = await asyncio.gather(*(client.post("/notes/", json=NOTE | {"title": title}) for title in titles))

    assert {response.status_code for response in responses} == {201}
    assert [response.json()["title"] for response in responses] == titles
    assert len({response.json()["id"] for response in responses}) == 100


async def test_command_url_that_was_not_signed_here_is_not_found(gateway_settings: GatewaySettings) -> None:
    other = gateway_settings.model_copy(update={"signing_keys": ("x" * 40,)})
    foreign = CommandUrls(GatewaySettings.model_validate(other.model_dump())).url(create(), confirmed=True)
    mine = CommandUrls(gateway_settings).url(create(), confirmed=True)
    others = CommandUrls(gateway_settings).url(create(owner=2), confirmed=True)
    body, signature = mine.removeprefix("/commands/").split(".")
    forged = base64.urlsafe_b64encode(json.dumps([1, 2]).encode()).decode()

    async with harness.gateway(gateway_settings) as client:
        for url in (foreign, others, f"/commands/{body}", f"/commands/{forged}.{signature}", "/commands/nonsense"):
            response = await client.get(url)
            assert (response.status_code, response.json()["code"]) == (404, "command_not_found")
        assert (await client.get(mine)).json()["status"] == "pending"


async def test_command_url_of_a_rotated_key_is_still_read(gateway_settings: GatewaySettings) -> None:
    url = CommandUrls(gateway_settings).url(create(), confirmed=True)
    rotated = gateway_settings.model_dump() | {"signing_keys": ("n" * 40, *gateway_settings.signing_keys)}

    async with harness.gateway(GatewaySettings.model_validate(rotated)) as client:
        assert (await client.get(url)).status_code == 200


async def test_command_url_older_than_the_retention_is_gone(gateway_settings: GatewaySettings) -> None:
    old = create(time=datetime.now(UTC) - timedelta(days=gateway_settings.command_retention_days, minutes=1))
    url = CommandUrls(gateway_settings).url(old, confirmed=True)

    async with harness.gateway(gateway_settings) as client:
        response = await client.get(url)
    assert (response.status_code, response.json()["code"]) == (410, "command_gone")


async def has_status(client: httpx.AsyncClient, url: str, status: str) -> dict[str, Any] | None:
    state = (await client.get(url)).json()
    return state if state["status"] == status else None


async def has_broker(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health/ready")).json()["dependencies"]["broker"] == "up")


async def has_no_broker(client: httpx.AsyncClient) -> bool:
    return not await has_broker(client)


async def created(client: httpx.AsyncClient) -> httpx.Response | None:
    response = await client.post("/notes/", json=NOTE)
    return response if response.status_code == 201 else None


async def listed(client: httpx.AsyncClient) -> httpx.Response | None:
    response = await client.get("/notes/")
    return response if response.status_code == 200 else None
