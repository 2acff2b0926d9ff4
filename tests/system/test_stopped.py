"""SIGTERM under load, and clients that disconnect."""

import asyncio
import random
import socket
import struct
from pathlib import Path

import httpx
import pytest
from asyncpg import Connection, Record

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.harness import eventually
from tests.support.stack import Load, Stack, check
from worker.settings import WorkerSettings

SLOW_PRUNING = """
create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return null; end $$;
create trigger slow after delete on commands for each statement execute function slow();
insert into commands (id, status, http_status, decided_at)
  values (gen_random_uuid(), 'applied', 201, now() - interval '8 days');
"""
NOTE = b'{"title": "gone", "description": ""}'
CLIENTS = 1000
RESPOND_ASYNC = {"Prefer": "respond-async"}


async def test_worker_stopped_under_load_finishes_its_batch_and_exits_with_0(stack: Stack) -> None:
    await stack.slow_down_stores(0.3)
    async with Load(stack.client).running() as load:
        await eventually(lambda: has_settled(stack))
        assert await stack.worker.stop() == 0
        await stack.worker.start()

    assert "drain timeout" not in str(stack.worker.events())
    await check(load, stack)


async def test_worker_stopped_while_postgres_is_silent_ends_in_time_and_its_batch_is_applied_later(
    stack: Stack,
) -> None:
    await stack.worker.stop()
    hasty = stack.worker.variant(INKWELL_DRAIN_TIMEOUT_SECONDS="1")
    await hasty.start()
    stack.links["worker-database"].freeze()
    response = await stack.client.post("/notes/", json={"title": "waits", "description": ""}, headers=RESPOND_ASYNC)
    await asyncio.sleep(1)  # until it is in the worker's hands

    async with asyncio.timeout(8):  # a statement would be given up after ten seconds
        assert await hasty.stop() == 0
    assert response.status_code == 202
    assert await stack.titles() == set()

    stack.links["worker-database"].thaw()
    await stack.worker.start()
    await eventually(lambda: has_title(stack, "waits"))
    assert hasty.events("drain timeout: what is not committed will be delivered again")


@pytest.mark.long
async def test_worker_stopped_while_it_prunes_stops_at_once(stack: Stack) -> None:
    await stack.worker.stop()
    await stack.script(SLOW_PRUNING)
    await stack.worker.start()
    await eventually(lambda: is_pruning(stack), within_seconds=90)  # a worker first prunes a minute after its start

    async with asyncio.timeout(5):
        assert await stack.worker.stop() == 0


async def test_gateway_stopped_under_load_resets_no_accepted_request_and_exits_with_0(stack: Stack) -> None:
    async with Load(stack.client).running() as load:
        await eventually(lambda: has_settled(stack))
        assert await stack.gateway.stop() == 0
    unanswered = {title for title, response in load.responses.items() if response is None}

    assert set(load.statuses) <= {0, 201, 202}
    await check(load, stack)
    assert not unanswered & await stack.titles()


async def test_gateway_that_stops_is_not_ready_and_answers_what_waits(stack: Stack) -> None:
    await stack.gateway.stop()
    patient = stack.gateway.variant(INKWELL_WAIT_SECONDS="20", INKWELL_DRAIN_DELAY_SECONDS="2")
    await patient.start()
    await stack.worker.stop()
    waiting = asyncio.create_task(stack.client.post("/notes/", json={"title": "waits", "description": ""}))
    await asyncio.sleep(1)

    stopping = asyncio.create_task(patient.stop())
    assert await eventually(lambda: ready_status(stack), within_seconds=2) == 503
    assert (await waiting).status_code == 202
    assert (await waiting).elapsed.total_seconds() < 3
    assert await stopping == 0


async def test_clients_that_disconnect_leave_nothing_behind(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    async with harness.worker(worker_settings), harness.gateway(gateway_settings) as client:
        await client.post("/notes/", json={"title": "first", "description": ""})
        tasks = len(asyncio.all_tasks())

        await disconnect(client.base_url, CLIENTS)

        await eventually(lambda: as_few_tasks_as(tasks))
    assert await database.fetchval(sessions("idle in transaction%")) == 0


async def test_clients_that_disconnect_cost_no_memory(stack: Stack) -> None:
    await disconnect(stack.client.base_url, CLIENTS)
    before = resident_bytes(stack.gateway.pid)

    await disconnect(stack.client.base_url, CLIENTS)

    assert resident_bytes(stack.gateway.pid) - before < 8 * 1024 * 1024
    assert await stack.value(sessions("%", "inkwell-gateway")) <= 4
    assert (await stack.client.get("/notes/")).status_code == 200


async def disconnect(url: httpx.URL, clients: int) -> None:
    """This many clients, a hundred at a time, each of which resets its connection at a random moment."""
    for _ in range(clients // 100):
        await asyncio.gather(*(disconnect_once(url) for _ in range(100)))


async def disconnect_once(url: httpx.URL) -> None:
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = random.choice(  # noqa: S311 - no secret
        [
            b"GET /notes/ HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /notes/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(NOTE), NOTE),
            b"POST /notes/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        ]
    )
    writer.write(head)
    await asyncio.sleep(random.uniform(0, 0.1))  # noqa: S311 - no secret
    reset = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    writer.transport.abort()


async def as_few_tasks_as(count: int) -> bool:
    return len(asyncio.all_tasks()) <= count


async def has_settled(stack: Stack) -> bool:
    return len(stack.worker.events("batch applied")) > 2


async def has_title(stack: Stack, title: str) -> bool:
    return title in await stack.titles()


async def ready_status(stack: Stack) -> int | None:
    status = (await stack.client.get("/health/ready")).status_code
    return status if status != 200 else None


def sessions(state: str, application: str = "%") -> str:
    """A query that counts the test database's sessions."""
    return (
        "select count(*) from pg_stat_activity where datname = current_database()"  # noqa: S608 - no user's words
        f" and state like '{state}' and application_name like '{application}'"
    )


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def is_pruning(stack: Stack) -> bool:
    running = "select count(*) from pg_stat_activity where query ilike '%delete from commands%' and state = 'active'"
    return bool(await stack.value(running + " and pid <> pg_backend_pid()"))
