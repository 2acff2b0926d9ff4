"""The checks of `doctor`. They are read-only; each server has its own deadline, and one failing hides no other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum

import asyncpg
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ProbableAuthenticationError
from pydantic_core import to_json

from shared.broker import (
    BROKER_ERRORS,
    PARTITIONS_REMEDY,
    broker_call,
    broker_version,
    hints_url_of,
    is_blocked,
    open_connection,
)
from shared.broker_metrics import PORT as METRICS_PORT
from shared.broker_metrics import NodeMetrics, read_broker_metrics
from shared.clock import OFFSET_LIMIT_SECONDS
from shared.database import SCHEMA_REMEDY, Session, connect, find_schema_revision, is_behind
from shared.errors import describe_error
from shared.partitions import find_partitions
from shared.queues import exists
from shared.settings import DEVELOPMENT_MARK, ServiceSettings
from shared.tables import SCHEMA_REVISION
from shared.topology import UNROUTED_KEY, RoutingState, Topology

CHECK_TIMEOUT_SECONDS = 10.0
ALARM_SECONDS = 0.5
"""How long a broker with an alarm takes to block a connection that publishes."""
SKEW_SECONDS = 1.0
SPARE_CONNECTIONS = 10
RESTART_BROKER = (
    "free its disk, then restart the node (`docker compose restart rabbitmq`); accepted writes are kept, but only a "
    "restart repairs the queues: see docs/runbook.md#inkwellbrokerqueuesdown"
)
GROW = (
    "`rabbitmq-queues grow NODE all` gives a node its members of the queues that were declared before it joined; "
    'see "A cluster of RabbitMQ" in docs/connections.md'
)
EXIT_OK = 0
EXIT_PROBLEM = 1


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, and what to do about it."""

    level: Level
    check: str
    found: str
    advice: str = ""


def judge(check: str, found: str, *, ok: bool, advice: str, level: Level = Level.PROBLEM) -> Finding:
    """Return a finding: OK, or one with this level and advice."""
    return Finding(Level.OK, check, found) if ok else Finding(level, check, found, advice)


def report(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print each finding as text or as a line of JSON; returns the exit code."""
    for finding in findings:
        if as_json:
            print(to_json(asdict(finding)).decode())
        else:
            print(f"{finding.level:<8} {finding.check}: {finding.found}")
            if finding.advice:
                print(f"         {finding.advice}")
    return EXIT_PROBLEM if any(finding.level is Level.PROBLEM for finding in findings) else EXIT_OK


async def run_checks(check: str, findings: AsyncIterator[Finding], advice: str) -> list[Finding]:
    """Run the checks of one server until one is not answered; returns their findings."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            async for finding in findings:
                found.append(finding)  # noqa: PERF401 - keeps those before an error
    except (*BROKER_ERRORS, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        found.append(Finding(Level.PROBLEM, check, f"does not answer ({describe_error(error)})", advice))
    return found


def check_secrets(settings: ServiceSettings) -> Finding:
    """Check that the secrets are not the built-in development ones."""
    is_development = settings.environment == "development"
    return judge(
        "secrets",
        f"INKWELL_ENVIRONMENT={settings.environment}",
        ok=not is_development,
        advice=f"secrets with {DEVELOPMENT_MARK} in them are public: use them only where no one else can connect",
        level=Level.WARNING,
    )


async def check_database(settings: ServiceSettings, application_name: str) -> AsyncIterator[Finding]:
    """Check schema, clock and connections."""
    session = await connect(settings.database_url, application_name)
    try:
        yield await check_revision(session)
        yield await check_clock(session)
        yield await check_free_connections(session)
    finally:
        session.terminate()


async def check_revision(session: Session) -> Finding:
    """Check that the database has all migrations that this version needs."""
    revision = await find_schema_revision(session)
    found = f"at {revision or 'nothing'}, this version needs {SCHEMA_REVISION}"
    return judge("schema", found, ok=not is_behind(revision), advice=SCHEMA_REMEDY)


async def check_clock(session: Session) -> Finding:
    """Compare this machine's clock with Postgres', to within half of the round trip."""
    sent = datetime.now(UTC)
    theirs = await session.fetchval("select clock_timestamp()")
    received = datetime.now(UTC)
    skew = abs((theirs - (sent + (received - sent) / 2)).total_seconds())
    return judge(
        "clock",
        f"{skew:.2f} s from Postgres'",
        ok=skew <= SKEW_SECONDS,
        advice="synchronize both (NTP): a service that starts while Postgres is unavailable uses its own clock",
        level=Level.PROBLEM if skew > OFFSET_LIMIT_SECONDS else Level.WARNING,
    )


async def check_free_connections(session: Session) -> Finding:
    """Check that Postgres has free connections."""
    [(used, limit)] = await session.fetch(
        "select sum(numbackends)::int, current_setting('max_connections')::int from pg_stat_database"
    )
    return judge(
        "connections",
        f"{used} of Postgres' {limit} are in use",
        ok=limit - used >= SPARE_CONNECTIONS,
        advice="raise max_connections, or run fewer other clients",
        level=Level.WARNING,
    )


async def check_broker(settings: ServiceSettings, application_name: str) -> AsyncIterator[Finding]:
    """Check the broker's queues, version and alarms."""
    nodes = await read_broker_metrics(settings.broker_url)
    if down := [host for host, node in nodes.items() if not node.has_raft]:
        found = f"are down on {', '.join(down)}, which keeps running although it could not write its log (full disk?)"
        yield Finding(Level.PROBLEM, "queues", found, RESTART_BROKER)
        if len(down) == len(nodes):
            return
    try:
        async with open_connection(settings.broker_url, application_name) as connection:
            async for finding in check_connected(connection, Topology.of(settings), [*nodes.values()]):
                yield finding
        yield await check_hints(settings, application_name)
    except ProbableAuthenticationError as error:
        advice = f"correct INKWELL_BROKER_URL; if it worked before, the disk may have been full: {RESTART_BROKER}"
        yield Finding(Level.PROBLEM, "broker", f"refuses the login ({describe_error(error)})", advice)


async def check_hints(settings: ServiceSettings, application_name: str) -> Finding:
    """Check that the virtual host for hints of changes admits the service."""
    commands_vhost = settings.broker_url.get_secret_value().vhost
    url = hints_url_of(settings.broker_url)
    vhost = url.get_secret_value().vhost
    found = f"in the virtual host {vhost}{', which is that of the commands' if vhost == commands_vhost else ''}"
    try:
        async with open_connection(url, application_name):
            return Finding(Level.OK, "hints", found)
    except BROKER_ERRORS as error:
        advice = (
            'create the virtual host and the permissions of dev/definitions.sh: see "Upgrading" in docs/upgrading.md'
        )
        return Finding(Level.WARNING, "hints", f"refused {found} ({describe_error(error)})", advice)


async def check_connected(
    connection: AbstractConnection, topology: Topology, nodes: Sequence[NodeMetrics]
) -> AsyncIterator[Finding]:
    """Check a broker that has accepted the login."""
    channel = await connection.channel(publisher_confirms=False)
    yield Finding(Level.OK, "broker", f"RabbitMQ {await broker_version(channel)}")
    if not await exists(channel, exchange=topology.commands_exchange):
        yield Finding(
            Level.PROBLEM, "exchange", f"{topology.commands_exchange} is missing", "start a worker, which declares it"
        )
        return
    wanted = topology.partitions
    declared = await find_partitions(channel, topology)
    if not declared:
        yield Finding(Level.PROBLEM, "partitions", "only workers from before 1.0 have run", "start a worker")
        return
    topology = declared
    yield judge_partitions(wanted, topology)
    for partition in range(topology.partitions):
        yield await check_partition(connection, topology, partition, nodes)
    if not nodes:
        found = f"not counted: RabbitMQ's metrics do not answer on port {METRICS_PORT}, and AMQP has no such count"
        yield Finding(Level.OK, "unacknowledged", found)
    if await find_queue_state(connection, topology.command_queue(topology.partitions)) is not None:
        found = f"there are more queues than the {topology.partitions} partitions"
        advice = f"`python -m worker repartition {topology.partitions}` completes the change of partitions"
        yield Finding(Level.PROBLEM, "queues", found, advice)
    yield await check_alarm(connection, channel, topology)  # last: publishing blocks the connection during an alarm


def judge_partitions(wanted: int, topology: Topology) -> Finding:
    """Check that commands are routed, and that the number of partitions is that of the setting, unless it is 0."""
    found = f"{topology.partitions}"
    if topology.routes is RoutingState.CLOSED:
        found += ", but the number is being changed: writes are refused until that is complete"
        advice = "if `python -m worker repartition N` is no longer running, run it again"
        return Finding(Level.PROBLEM, "partitions", found, advice)
    if wanted and wanted != topology.partitions:
        found += f", but INKWELL_PARTITIONS={wanted}: services with that setting neither publish nor consume"
        return Finding(Level.PROBLEM, "partitions", found, PARTITIONS_REMEDY)
    return Finding(Level.OK, "partitions", found)


async def check_alarm(connection: AbstractConnection, channel: AbstractChannel, topology: Topology) -> Finding:
    """Check for alarms, which the broker reports only to connections that publish; it drops this message."""
    exchange = await channel.get_exchange(topology.commands_exchange, ensure=False)
    with broker_call():
        await exchange.publish(Message(b""), UNROUTED_KEY, mandatory=False)
    await asyncio.sleep(ALARM_SECONDS)
    blocked = await is_blocked(connection)
    return judge(
        "alarms",
        "the broker accepts no messages" if blocked else "none",
        ok=not blocked,
        advice="give it memory or disk; `rabbitmq-diagnostics alarms` shows which",
    )


async def check_partition(
    connection: AbstractConnection, topology: Topology, partition: int, nodes: Sequence[NodeMetrics]
) -> Finding:
    """Check that the partition's queue exists, has a member on all nodes and a consumer; counts its messages."""
    queue = topology.command_queue(partition)
    check = f"partition {partition}"
    state = await find_queue_state(connection, queue)
    if state is None:
        return Finding(Level.PROBLEM, check, "has no queue", "start a worker, which declares it")
    waiting, consumers = state
    found = f"{'consumed' if consumers else 'has no consumer'}, {waiting} messages wait"
    if unacknowledged := [node.unacknowledged[queue] for node in nodes if queue in node.unacknowledged]:
        found += f", {max(unacknowledged)} are unacknowledged"
    members = sum(queue in node.members for node in nodes)
    if members < len(nodes):
        found += f"; its queue has members on {members} of {len(nodes)} nodes"
    if not consumers:
        advice = "start a worker; if one is running, its log says why it does not consume the queue"
        if nodes and not members:
            advice = f"if no other node has a member, {RESTART_BROKER}"
        return Finding(Level.PROBLEM, check, found, advice)
    return judge(check, found, ok=members == len(nodes), advice=GROW, level=Level.WARNING)


async def find_queue_state(connection: AbstractConnection, queue: str) -> tuple[int, int] | None:
    """Return the numbers of ready messages and of active consumers in a queue; None if it does not exist."""
    channel = await connection.channel(publisher_confirms=False)  # its own: the broker may close it
    try:
        declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return None
    await channel.close()
    return declared.message_count or 0, declared.consumer_count or 0
