"""The figures for capacity planning: `python -m bench.numbers`, or `make numbers`.

Bytes are those of this bench's note, which has 59 characters, in commands of 64 users.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import aio_pika
import docker
import psutil
from docker.errors import DockerException

from bench.contenders import PARTITIONS, Contender, Stage
from bench.database import QUIET_SECONDS, Database
from bench.load import Responses, require_tools, run_wrk
from bench.measure import WARM_UP_SECONDS
from bench.scenarios import ALL_PARTITIONS, LISTED_NOTES, SCENARIOS
from dev.backend import Services, UnavailableError
from dev.services import services
from shared.topology import Topology
from worker.housekeeping import TRY_LOCK, prune

CONNECTIONS = 64
RETENTION = timedelta(days=7)
QUEUEING = 3
"""How many times longer than the other loads, so that the queued messages outweigh the broker's own memory."""
OLD_SHARE = 5
"""One in this many rows is older than the retention."""
BROKER_FILES = "/var/lib/rabbitmq"
QUEUED_MEMORY = ("binary", "quorum_ets", "quorum_queue_procs")
SAMPLE_SECONDS = 0.1
STOP_SECONDS = 30
SESSIONS = (
    "select application_name from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
)
COUNT_OLD = "select count(*) from commands where decided_at < now() - $1::interval"
SIZES = "select pg_table_size('{table}'), pg_indexes_size('{table}')"
# Ids as gateways make them, time-ordered UUIDs; outcomes as workers store them.
FILL_COMMANDS = """
insert into commands (id, type, owner_id, fingerprint, attempt_id, issued_at, decided_at, status, http_status, note_id,
  note_version, body)
select (lpad(to_hex(1750000000000 + id), 12, '0') || '7' || substr(md5(id::text), 1, 3) || '8' ||
    substr(md5(id::text), 4, 15))::uuid,
  'note.create', 1 + id % 64, repeat(md5(id::text), 2), md5(id::text)::uuid, time, time, 'applied', 201, id, 1,
  '{"id":' || id || ',"title":"Buy a bottle of ink","description":"Blue-black, and some paper to go with it",'
    '"created_date":"2026-11-22T15:25:30.649922+00:00","updated_date":"2026-11-22T15:25:30.649922+00:00","version":1}'
from generate_series(1, ROWS) as id,
  lateral (select now() - interval '1 day' * case when id <= ROWS / OLD then 9 else 6 end) as decided(time)
"""


@dataclass(frozen=True, slots=True)
class Number:
    """A figure and its method of measurement."""

    what: str
    value: str
    how: str


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.numbers", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of `commands` while it is pruned")
    parser.add_argument("--seconds", type=int, default=20, help="of each load")
    options = parser.parse_args()
    require_tools()
    try:
        with services() as urls:
            numbers = asyncio.run(measured(urls, options.rows, options.seconds))
    except UnavailableError as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(table(numbers))


def table(numbers: list[Number]) -> str:
    """The figures in Markdown."""
    rows = "".join(f"| {each.what} | {each.value} | {each.how} |\n" for each in numbers)
    return f"| | measured | how |\n|---|---|---|\n{rows}"


async def measured(urls: Services, rows: int, seconds: int) -> list[Number]:
    """Measures everything, with one gateway and one worker."""
    async with AsyncExitStack() as exits:
        stage = Stage(urls, exits, ALL_PARTITIONS)
        gateway, settings = await stage.gateway("numbers")
        worker = await stage.worker(settings)
        await gateway.ready()
        database = _database(gateway)
        await database.reset(ALL_PARTITIONS, LISTED_NOTES)
        numbers = await connections(gateway, seconds)
        await database.reset(ALL_PARTITIONS, 0)
        await _stop(worker)
        queued, commands = await queueing(stage, gateway, settings, QUEUEING * seconds)
        await TRY_LOCK.fetch(database.connection)  # so no worker prunes from here on
        await stage.worker(settings)
        numbers += [*queued, *await growth(database, commands)]
        return [*numbers, *await pruning(gateway, rows, seconds), *image()]


async def _stop(process: psutil.Process) -> None:
    process.terminate()
    async with asyncio.timeout(STOP_SECONDS):
        while process.is_running():
            await asyncio.sleep(SAMPLE_SECONDS)


def _database(gateway: Contender) -> Database:
    assert gateway.database  # noqa: S101 - a gateway has one
    return gateway.database


async def _load(gateway: Contender, scenario: str, seconds: int) -> Responses:
    responses = await run_wrk(gateway, SCENARIOS[scenario], ALL_PARTITIONS, CONNECTIONS, seconds)
    if responses.refused or responses.broken:
        raise RuntimeError(f"{scenario}: {responses.refused} refused, {responses.broken} broken")
    return responses


async def connections(gateway: Contender, seconds: int) -> list[Number]:
    """Sessions at Postgres by name, idle and at most under load."""
    database = _database(gateway)
    idle = await _sessions(database)
    loads = asyncio.gather(*(_load(gateway, scenario, seconds) for scenario in ("create", "list")))
    most: dict[str, int] = {}
    while not loads.done():
        for name, count in (await _sessions(database)).items():
            most[name] = max(count, most.get(name, 0))
        await asyncio.sleep(SAMPLE_SECONDS)
    await loads
    how = f"`pg_stat_activity`, every {SAMPLE_SECONDS} s while {CONNECTIONS} clients write and {CONNECTIONS} read lists"
    return [
        Number(f"sessions `{name}`", f"{idle.get(name, 0)} idle, {most[name]} loaded", how) for name in sorted(most)
    ]


async def _sessions(database: Database) -> dict[str, int]:
    names = [row[0] for row in await database.connection.fetch(SESSIONS)]
    return {name: names.count(name) for name in names if name.startswith("inkwell-")}


async def queueing(
    stage: Stage, gateway: Contender, settings: dict[str, str], seconds: int
) -> tuple[list[Number], int]:
    """The broker's memory and disk for unconsumed commands, and their number."""
    disk, memory = _broker(stage)
    responses = await _load(replace(gateway, headers={"Prefer": "respond-async"}), "create", seconds)
    more_disk, more_memory = _broker(stage)
    messages = await _messages(settings)
    taken, commands = sum(len(json.loads(message)) for message in messages), responses.good
    each = taken / len(messages)
    how = f"{commands:,} writes from {CONNECTIONS} clients with the worker stopped, {each:.1f} in a message"
    return [
        Number("a queued command, in its message", f"{sum(map(len, messages)) / taken:,.0f} bytes", how),
        Number("on the broker's disk", f"{(more_disk - disk) / commands:,.0f} bytes", f"the same; `du {BROKER_FILES}`"),
        Number(
            "in the broker's memory",
            f"{(more_memory - memory) / commands:,.0f} bytes",
            "the same; `rabbitmq-diagnostics memory_breakdown`",
        ),
    ], commands


def _broker(stage: Stage) -> tuple[int, int]:
    """Bytes on disk, and bytes in memory for queued messages."""
    disk = int(stage.rabbitmq.ask("du", "-sk", BROKER_FILES).split()[0]) * 1024
    memory = json.loads(stage.rabbitmq.ask("rabbitmq-diagnostics", "--quiet", "--formatter=json", "memory_breakdown"))
    return disk, sum(memory[part]["bytes"] for part in QUEUED_MEMORY)


async def _messages(settings: dict[str, str]) -> list[bytes]:
    """The queued messages, up to the broker's limit of unacknowledged ones; they are requeued at the end."""
    topology = Topology(settings["INKWELL_QUEUE_PREFIX"], PARTITIONS)
    messages: list[bytes] = []
    async with await aio_pika.connect(settings["INKWELL_BROKER_URL"]) as connection:
        channel = await connection.channel()
        for partition in range(PARTITIONS):
            queue = await channel.get_queue(topology.command_queue(partition))
            with suppress(TimeoutError):
                async for message in queue.iterator(timeout=QUIET_SECONDS):
                    messages += [message.body]
    return messages


async def growth(database: Database, commands: int) -> list[Number]:
    """The size of the rows of these commands once applied, including those in flight when the load ended."""
    await database.settled("POST", commands)
    numbers = []
    for name in ("commands", "notes"):
        rows = await database.connection.fetchval(f"select count(*) from {name}")
        [(heap, indexes)] = await database.connection.fetch(SIZES.format(table=name))
        value = f"{(heap + indexes) / rows:,.0f} MB for a million, {indexes / rows:,.0f} of them indexes"
        numbers.append(Number(f"`{name}`", value, f"`pg_table_size` and `pg_indexes_size`, {rows:,} rows"))
    return numbers


async def pruning(gateway: Contender, rows: int, seconds: int) -> list[Number]:
    """How fast many old outcomes are pruned, and by how much writes slow down in the meantime."""
    database = _database(gateway)
    await database.reset(ALL_PARTITIONS, LISTED_NOTES)
    await database.connection.execute(FILL_COMMANDS.replace("ROWS", str(rows)).replace("OLD", str(OLD_SHARE)))
    await database.connection.execute("vacuum analyze commands")
    await _load(gateway, "create", WARM_UP_SECONDS)
    before = await _load(gateway, "create", seconds)
    left = await _old(database)
    async with _pruning(database):
        meanwhile = await _load(gateway, "create", seconds)
    pruned = left - await _old(database)
    how = f"{seconds} s while {CONNECTIONS} clients write, {rows:,} rows in `commands`, one in {OLD_SHARE} of them old"
    cost = 1 - meanwhile.good * before.seconds / (before.good * meanwhile.seconds)
    return [
        Number("pruning", f"{pruned / meanwhile.seconds:,.0f} rows/s", how),
        Number("writes are slower while it prunes", f"{cost:.0%}", f"{how}, against {seconds} s without pruning"),
    ]


async def _old(database: Database) -> int:
    return int(await database.connection.fetchval(COUNT_OLD, RETENTION))


@asynccontextmanager
async def _pruning(database: Database) -> AsyncIterator[None]:
    """Prunes during the block, like a worker."""
    task = asyncio.create_task(prune(database.connection, RETENTION))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def image() -> list[Number]:
    """The image's size, if it has been built."""
    with suppress(DockerException):
        size = docker.from_env().images.get("inkwell").attrs["Size"]
        return [Number("the image", f"{size / 1e6:,.0f} MB", "`docker image inspect inkwell`, with Python's own")]
    return []


if __name__ == "__main__":
    main()
