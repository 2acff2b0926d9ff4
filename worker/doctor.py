"""Checks a worker's settings, rights and queues: `python -m worker doctor`."""

from collections.abc import AsyncIterator

from aio_pika.abc import AbstractChannel

from shared.broker import open_connection
from shared.database import Session, connect
from shared.doctor import (
    Finding,
    Level,
    check_broker,
    check_database,
    check_secrets,
    judge,
    report,
    run_checks,
)
from shared.partitions import find_partitions
from shared.queues import QueueMismatchError, exists
from shared.topology import QUEUE_LIMIT, Topology
from worker.settings import WorkerSettings

NAME = "inkwell-worker doctor"
TABLES = ("users", "notes", "commands", "personal_tokens", "attempt_marks", "tombstones", "note_versions")
UPDATED_TABLES = ("users", "notes", "commands", "tombstones", "note_versions")
NUMBERED_TABLES = ("users", "notes")
"""The tables whose ids come from a sequence."""
FIND_LACKING = """
select coalesce(array_agg(name order by name), '{}') from unnest($1::text[]) as name
where to_regclass(name) is null or not has_table_privilege(name, 'select')
    or not has_table_privilege(name, 'insert') or not has_table_privilege(name, 'delete')
    or name = any($2::text[]) and not has_table_privilege(name, 'update')
    or name = any($3::text[]) and not has_sequence_privilege(name || '_id_seq', 'usage')
"""
COUNT_DEAD_LETTERS = "select count(*), min(decided_at) from commands where status = 'failed'"


async def examine(settings: WorkerSettings, *, as_json: bool) -> int:
    """Print all findings; return 1 if any is a problem."""
    findings = [check_secrets(settings)]
    advice = "writes are accepted and wait until it does; see its log"
    findings += await run_checks("Postgres", check_database(settings, NAME), advice)
    findings += await run_checks("role", check_rows(settings), "see above")
    findings += await run_checks("broker", check_broker(settings, NAME), "writes are 503 until it does; see its log")
    findings += await run_checks("queues", check_arguments(settings), "see above")
    return report(findings, as_json=as_json)


async def check_rows(settings: WorkerSettings) -> AsyncIterator[Finding]:
    """Check the worker's rights and the dead letters."""
    session = await connect(settings.database_url, NAME)
    try:
        yield await check_role(session)
        yield await check_dead_letters(session)
    finally:
        session.terminate()


async def check_role(session: Session) -> Finding:
    """Check that the worker has the rights that it needs and no others."""
    if await session.fetchval("select current_setting('transaction_read_only')::bool"):
        advice = "connect to the primary; if this is the primary, default_transaction_read_only is set on it"
        return Finding(Level.PROBLEM, "role", "may only read here, as on a standby", advice)
    lacking = await session.fetchval(FIND_LACKING, TABLES, UPDATED_TABLES, NUMBERED_TABLES)
    if lacking:
        advice = "connect as inkwell_worker, see dev/roles.sql, and run the migrations, which grant its rights"
        return Finding(Level.PROBLEM, "role", f"may not write {', '.join(lacking)}", advice)
    may_create = await session.fetchval("select has_schema_privilege('public', 'create')")
    return judge(
        "role",
        "may also create tables" if may_create else "writes rows and no more",
        ok=not may_create,
        advice="connect as inkwell_worker, see dev/roles.sql",
        level=Level.WARNING,
    )


async def check_dead_letters(session: Session) -> Finding:
    """Check whether failed commands wait for an operator."""
    [(count, since)] = await session.fetch(COUNT_DEAD_LETTERS)
    return judge(
        "dead letters",
        f"{count}, the first of {since:%Y-%m-%d %H:%M} UTC" if count else "none",
        ok=not count,
        advice="`python -m worker dead-letters list` has the reasons; replay or discard them",
        level=Level.WARNING,
    )


async def check_arguments(settings: WorkerSettings) -> AsyncIterator[Finding]:
    """Check that existing queues have the arguments with which this worker would declare them."""
    async with open_connection(settings.broker_url, NAME) as connection:
        channel = await connection.channel(publisher_confirms=False)
        topology = await find_partitions(channel, Topology.of(settings)) or Topology.of(settings)
        for partition in range(topology.partitions):
            if await exists(channel, queue=topology.command_queue(partition)):
                async for finding in check_queue(channel, topology, partition):
                    yield finding


async def check_queue(channel: AbstractChannel, topology: Topology, partition: int) -> AsyncIterator[Finding]:
    """Check the arguments of a partition's queue, on which order and durability depend."""
    check = f"partition {partition}"
    advice = f"`python -m worker queues remake {partition}` redeclares it and keeps its messages"
    try:
        differences = await topology.declare_command_queue(channel, partition)
    except QueueMismatchError as error:
        yield Finding(Level.PROBLEM, check, f"is not consumed: declared with other arguments: {error}", advice)
        return
    limit = differences.pop(QUEUE_LIMIT, None)
    for argument, value in differences.items():
        yield Finding(Level.PROBLEM, check, f"was declared with {argument}={value}", advice)
    if limit:
        found = f"was declared with INKWELL_QUEUE_LIMIT_BYTES={limit}"
        yield Finding(Level.WARNING, check, found, "which it keeps; a policy can lower it")
