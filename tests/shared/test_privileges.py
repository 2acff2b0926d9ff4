"""What each service's user may not do in RabbitMQ and in Postgres."""

from collections.abc import Awaitable, Callable

import aio_pika
import asyncpg
import pytest
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused
from pamqp.common import FieldTable
from yarl import URL

from dev.backend import Services
from gateway.settings import GatewaySettings
from shared.database import Session
from shared.topology import Topology
from tests.support.rendering import find

Action = Callable[[AbstractChannel, Topology], Awaitable[object]]


async def bind_commands_to_hints(channel: AbstractChannel, topology: Topology) -> object:
    exchange = await channel.get_exchange(topology.commands_exchange, ensure=False)
    return await exchange.bind(topology.changes_exchange)


async def declare_time_bomb(channel: AbstractChannel, topology: Topology) -> object:
    """Declares a queue that sends what it holds to the commands, a day after a password may have been changed."""
    arguments: FieldTable = {
        "x-message-ttl": 86_400_000,
        "x-dead-letter-exchange": topology.commands_exchange,
        "x-dead-letter-routing-key": topology.routing_key(0),
    }
    return await channel.declare_queue(topology.hints_queue("2" * 32), durable=True, arguments=arguments)


REFUSED_TO_BOTH: dict[str, Action] = {
    "declare a queue of another name": lambda channel, _: channel.declare_queue("other"),
    "declare an exclusive queue": lambda channel, _: channel.declare_queue(exclusive=True),
    "declare an exchange of another name": lambda channel, _: channel.declare_exchange("other"),
    "consume dead letters": lambda channel, topology: consume(channel, topology.unreadable_queue),
    "purge the dead letters": lambda channel, topology: purge(channel, topology.unreadable_queue),
    "publish to an exchange of RabbitMQ's": lambda channel, topology: publish(
        channel, "amq.direct", topology.command_queue(0)
    ),
    "bind to an exchange of RabbitMQ's": lambda channel, topology: bind(
        channel, "amq.direct", topology.command_queue(0)
    ),
}
REFUSED_TO_GATEWAY: dict[str, Action] = {
    "declare its queue": lambda channel, topology: channel.declare_queue(topology.command_queue(0), durable=True),
    "declare its exchange": lambda channel, topology: channel.declare_exchange(topology.commands_exchange),
    "delete a queue": lambda channel, topology: channel.queue_delete(topology.command_queue(0)),
    "delete the dead letters": lambda channel, topology: channel.queue_delete(topology.unreadable_queue),
    "delete the exchange": lambda channel, topology: channel.exchange_delete(topology.commands_exchange),
    "consume commands": lambda channel, topology: consume(channel, topology.command_queue(0)),
    "get a command": lambda channel, topology: get(channel, topology.command_queue(0)),
    "purge a queue": lambda channel, topology: purge(channel, topology.command_queue(0)),
    "bind a queue": lambda channel, topology: bind(channel, topology.commands_exchange, topology.command_queue(0)),
    "publish into a queue": lambda channel, topology: publish(channel, "", topology.command_queue(0)),
    "publish a dead letter": lambda channel, topology: publish(channel, "", topology.unreadable_queue),
    "declare the exchange of hints": lambda channel, topology: channel.declare_exchange(topology.changes_exchange),
    "delete the exchange of hints": lambda channel, topology: channel.exchange_delete(topology.changes_exchange),
    "publish a hint": lambda channel, topology: publish(channel, topology.changes_exchange, ""),
    "declare a queue of hints": lambda channel, topology: channel.declare_queue(topology.hints_queue("0" * 32)),
    "declare an exchange with the name of a queue of hints": lambda channel, topology: channel.declare_exchange(
        topology.hints_queue("1" * 32), durable=True
    ),
    "declare a queue that sends commands later": declare_time_bomb,
    "bind a command queue to hints": lambda channel, topology: bind(
        channel, topology.changes_exchange, topology.command_queue(0)
    ),
    "bind the commands' exchange to hints": bind_commands_to_hints,
    "declare a queue of hints of another name": lambda channel, topology: channel.declare_queue(
        f"{topology.changes_exchange}.other"
    ),
    "publish a reply": lambda channel, _: publish(channel, "", "amq.rabbitmq.reply-to.another"),
}
REFUSED_TO_WORKER: dict[str, Action] = {
    "receive hints": lambda channel, topology: topology.bind_hints(channel, "1" * 32),
}
NEEDED_FOR_HINTS = {"declare a queue of hints", "declare an exchange with the name of a queue of hints"}
"""What the gateway may do in the virtual host for hints: RabbitMQ does not tell queues from exchanges."""
REFUSED = [
    *[("gateway", "commands", action) for action in REFUSED_TO_BOTH | REFUSED_TO_GATEWAY],
    *[
        ("gateway", "hints", action)
        for action in REFUSED_TO_BOTH | REFUSED_TO_GATEWAY
        if action not in NEEDED_FOR_HINTS
    ],
    *[("worker", vhost, action) for vhost in ("commands", "hints") for action in REFUSED_TO_BOTH | REFUSED_TO_WORKER],
]

CREATIONS = [
    "create table t (id int)",
    "create temporary table t (id int)",
    "create schema s",
    "create function f() returns int language sql as 'select 1'",
    "create extension citext",
    "create role r",
    "create database d",
    "select lo_create(0)",
    "select lo_creat(-1)",
    "select lo_from_bytea(0, 'x')",
    "select lo_import('/etc/passwd')",
    "select lo_export(1, '/tmp/x')",
    "select pg_logical_emit_message(false, 'x', repeat('x', 1000))",
    "select pg_logical_emit_message(true, 'x', 'x'::bytea)",
    "select pg_export_snapshot()",
    "copy (select 1) to '/tmp/x'",
    "copy (select 1) to program 'true'",
    "alter table notes add colour text",
    "truncate notes",
    "drop table notes",
]
CHANGES_OF_A_TABLE = [
    "insert into {table} default values",
    "update {table} set {column} = {column}",
    "delete from {table}",
    "truncate {table}",
    "do $$ begin lock table {table} in share mode; end $$",
    "do $$ begin lock table {table} in access exclusive mode; end $$",
    "select * from {table} for update",
    "alter table {table} add colour text",
    "drop table {table}",
]
TABLES = """
select c.oid::regclass::text as table, a.attname::text as column from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum = 1
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
"""
SEQUENCES = "select oid::regclass::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'S'"


async def consume(channel: AbstractChannel, queue: str) -> object:
    return await (await channel.get_queue(queue, ensure=False)).consume(ignore)


async def ignore(_: object) -> None:
    """What an unauthorised consumer could do with a message."""


async def get(channel: AbstractChannel, queue: str) -> object:
    return await (await channel.get_queue(queue, ensure=False)).get(fail=False)


async def purge(channel: AbstractChannel, queue: str) -> object:
    return await (await channel.get_queue(queue, ensure=False)).purge()


async def bind(channel: AbstractChannel, exchange: str, queue: str) -> object:
    return await (await channel.get_queue(queue, ensure=False)).bind(exchange, "key")


async def publish(channel: AbstractChannel, exchange: str, key: str) -> object:
    target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
    return await target.publish(aio_pika.Message(b""), key)


@pytest.fixture
def broker(servers: Services) -> Services:
    """The servers, if RabbitMQ has a user for each service."""
    if not servers.has_broker_users:
        pytest.skip("INKWELL_BROKER_URL names a RabbitMQ in which there is one user for both services")
    return servers


@pytest.mark.parametrize(("service", "vhost", "action"), REFUSED)
async def test_refused_at_the_broker(
    broker: Services, gateway_settings: GatewaySettings, service: str, vhost: str, action: str
) -> None:
    topology = Topology.of(gateway_settings)
    url = {"commands": broker.broker_url_of, "hints": broker.hints_url_of}[vhost](service)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        with pytest.raises(ChannelAccessRefused):
            await (REFUSED_TO_BOTH | REFUSED_TO_GATEWAY | REFUSED_TO_WORKER)[action](channel, topology)


async def test_broker_has_no_guest(broker: Services) -> None:
    with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
        await aio_pika.connect(str(URL(broker.broker_url).with_user("guest").with_password("guest")))


async def test_services_can_create_nothing_in_postgres(as_service: Session) -> None:
    for statement in CREATIONS:
        await assert_refused(as_service, statement)


async def test_gateway_can_change_no_table(as_gateway: Session) -> None:
    tables = await as_gateway.fetch(TABLES)

    assert {"alembic_version", "commands", "notes", "users"} <= {row["table"] for row in tables}
    for row in tables:
        for statement in CHANGES_OF_A_TABLE:
            await assert_refused(as_gateway, statement.format(**row))


async def test_gateway_can_advance_no_sequence(as_gateway: Session) -> None:
    sequences = [row[0] for row in await as_gateway.fetch(SEQUENCES)]

    assert "notes_id_seq" in sequences
    for name in sequences:
        await assert_refused(as_gateway, f"select nextval('{name}')")
        await assert_refused(as_gateway, f"select setval('{name}', 1)")


async def assert_refused(session: Session, statement: str) -> None:
    try:
        await session.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return
    pytest.fail(f"`{statement}` is allowed")


async def test_no_user_of_inkwell_is_an_administrator(database: Session) -> None:
    roles = await database.fetch("select * from pg_roles where rolname like 'inkwell\\__%'")

    assert {role["rolname"] for role in roles} == {"inkwell_gateway", "inkwell_migrator", "inkwell_worker"}
    for role in roles:
        assert not any(role[f"rol{right}"] for right in ("super", "createrole", "createdb", "replication", "bypassrls"))


async def test_migrator_owns_every_table(database: Session) -> None:
    owners = await database.fetch("select distinct tableowner from pg_tables where schemaname = 'public'")

    assert [row["tableowner"] for row in owners] == ["inkwell_migrator"]


async def test_metrics_of_cloudnative_pg_may_connect_where_the_public_may_not(database: Session) -> None:
    may = "select has_database_privilege('pg_monitor', current_database(), 'connect')"
    initdb = find("production", "Cluster", "postgres")["spec"]["bootstrap"]["initdb"]
    assert not await database.fetchval(may)

    for statement in initdb["postInitApplicationSQL"]:
        name = await database.fetchval("select current_database()")
        await database.execute(statement.replace(f"database {initdb['database']}", f"database {name}"))

    assert await database.fetchval(may)
