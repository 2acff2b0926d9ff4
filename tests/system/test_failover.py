"""A standby of Postgres is promoted while the former primary hangs, or later comes back unnoticed."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from dev.backend import ROOT, Services, as_user, with_database
from tests.faults.cluster import migrated
from tests.faults.postgres_pair import PostgresPair
from tests.faults.rigs import servers
from tests.faults.servers import Servers
from tests.support import canaries
from tests.support.harness import eventually
from tests.support.stack import Stack, running_stack

RECOVERY_SECONDS = 30.0
READERS = 8
"""More than the gateway's connections."""
COMMANDS = [
    ("inkwell_worker", "-m", "shared.wait_for_postgres"),
    ("inkwell_worker", "-m", "shared.wait_for_schema"),
    ("inkwell_migrator", "-m", "alembic", "upgrade", "head"),
    ("inkwell_worker", "-m", "worker", "dead-letters", "list"),
]

Pair = Servers[PostgresPair, Any]

pytestmark = pytest.mark.needs_docker


@pytest.fixture(scope="module")
async def rig() -> AsyncIterator[Pair]:
    async with servers(has_standby=True, has_nodes=False) as rig:
        await migrated(rig.services, ROOT)
        yield rig


@pytest.fixture(scope="module")
def pair(rig: Pair) -> PostgresPair:
    return rig.postgres


@pytest.fixture
async def whole_pair(pair: PostgresPair) -> PostgresPair:
    """The pair with a standby that has received every commit."""
    await pair.repair()
    return pair


@asynccontextmanager
async def stack_at_one_address(rig: Pair, folder: Path) -> AsyncIterator[Stack]:
    """A stack whose links to Postgres lead to the current primary."""
    pair = rig.postgres
    port = pair.ports[pair.primary]
    database_url = f"postgresql://inkwell:inkwell@127.0.0.1:{port}/inkwell_faults"
    async with running_stack(database_url, rig.services, f"test-{uuid4().hex[:12]}", folder) as stack:
        yield stack


async def fail_over(pair: PostgresPair, *stacks: Stack) -> None:
    """Pause the primary, promote the standby, move the address, and resume the former primary."""
    former = pair.primary
    await asyncio.to_thread(pair.nodes[former].get_wrapped_container().pause)
    await asyncio.to_thread(pair.promote)
    for stack in stacks:
        for link in ("gateway-database", "worker-database"):
            stack.links[link].lead_to("127.0.0.1", pair.ports[pair.primary])
    await asyncio.to_thread(pair.nodes[former].get_wrapped_container().unpause)


async def test_no_read_comes_from_the_former_primary_once_a_write_is_answered(
    rig: Pair, whole_pair: PostgresPair, tmp_path: Path
) -> None:
    async with stack_at_one_address(rig, tmp_path) as stack:
        await asyncio.gather(*(stack.client.get("/notes/") for _ in range(READERS)))  # idle sessions from here on
        await fail_over(whole_pair, stack)

        created = await eventually(lambda: written(stack.client), within_seconds=RECOVERY_SECONDS)
        reads = [await asyncio.gather(*(read(stack.client, created) for _ in range(READERS))) for _ in range(16)]

    assert [status for each in reads for status in each] == [200] * 16 * READERS


async def test_idle_gateway_reads_from_the_new_primary_soon(
    rig: Pair, whole_pair: PostgresPair, tmp_path: Path
) -> None:
    async with stack_at_one_address(rig, tmp_path) as stack, stack.second_gateway() as idle:
        await asyncio.gather(*(idle.get("/notes/") for _ in range(READERS)))
        await fail_over(whole_pair, stack)
        created = await eventually(lambda: written(stack.client), within_seconds=RECOVERY_SECONDS)

        # The gateway has had no reply from a worker, and none of its sessions has failed.
        await eventually(lambda: is_read(idle, created), within_seconds=10)
        statuses = [await read(idle, created) for _ in range(64)]

    assert statuses == [200] * 64


async def written(client: httpx.AsyncClient) -> str | None:
    """The path of a new note; fails unless the write is answered 201."""
    response = await client.post("/notes/", json=canaries.NOTE)
    return response.headers["Location"] if response.status_code == 201 else None


async def read(client: httpx.AsyncClient, note: str) -> int:
    """The status of a read."""
    return (await client.get(note)).status_code


async def is_read(client: httpx.AsyncClient, note: str) -> bool:
    """Whether the note exists."""
    return await read(client, note) == 200


@pytest.mark.parametrize("attributes", ["primary", "read-write"])
async def test_every_command_finds_the_second_host_when_the_first_one_hangs(
    rig: Pair, whole_pair: PostgresPair, attributes: str
) -> None:
    former = whole_pair.primary
    await asyncio.to_thread(whole_pair.nodes[former].get_wrapped_container().pause)
    await asyncio.to_thread(whole_pair.promote)
    ports = whole_pair.ports[former], whole_pair.ports[whole_pair.primary]
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    url = f"postgresql://inkwell:inkwell@{hosts}/inkwell_faults?target_session_attrs={attributes}"

    ended = [await asyncio.to_thread(run, rig.services, url, *command) for command in COMMANDS]

    assert [each.returncode for each in ended] == [0] * len(COMMANDS), [each.stderr for each in ended]


def run(services: Services, url: str, role: str, *command: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command with this URL; fails if it takes too long."""
    environment = {
        "INKWELL_DATABASE_URL": as_user(url, role, role),
        "INKWELL_BROKER_URL": services.broker_url_of("worker"),
    }
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=RECOVERY_SECONDS,
    )


async def test_services_start_while_only_a_standby_answers(rig: Pair, whole_pair: PostgresPair) -> None:
    standby = f"postgresql://inkwell:inkwell@127.0.0.1:{whole_pair.ports[whole_pair.standby]}/x"
    command = ("inkwell_worker", "-m", "shared.wait_for_schema")

    ended = await asyncio.to_thread(run, rig.services, with_database(standby, "inkwell_faults"), *command)

    assert ended.returncode == 0
    assert "waiting: Postgres does not answer" in ended.stderr
    assert "NotPrimaryError" in ended.stderr
