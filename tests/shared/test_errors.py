"""Log lines describe errors well enough to fix them, and contain nothing that users wrote."""

import asyncio
import socket

import aio_pika
import asyncpg
import pytest
from aio_pika.exceptions import AMQPError, DeliveryError
from asyncpg import Connection, Record
from pydantic import BaseModel, ValidationError

from dev.backend import Services
from shared.errors import describe_error

SECRET = "correct horse battery staple"


@pytest.mark.parametrize(
    ("statement", "described"),
    [
        ("select * from nothing", 'UndefinedTableError 42P01: relation "nothing" does not exist'),
        ("set statement_timeout = 1; select pg_sleep(9)", "QueryCanceledError 57014: canceling statement due to"),
        ("create table users ()", 'DuplicateTableError 42P07: relation "users" already exists'),
        ("select '{}'::int", "InvalidTextRepresentationError 22P02"),
        ("insert into users (id, name) values (1, '{}')", "UniqueViolationError 23505: users_pkey"),
        ("do $$ begin raise exception '{}'; end $$", "RaiseError P0001"),
        ("do $$ begin raise '{}' using errcode = 'check_violation'; end $$", "CheckViolationError 23514"),
    ],
)
async def test_error_of_postgres_has_its_sqlstate_and_its_text_unless_that_may_quote_users(
    database: "Connection[Record]", statement: str, described: str
) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await database.execute(statement.format(SECRET))

    assert described in describe_error(caught.value)
    assert SECRET not in describe_error(caught.value)


async def test_parameter_that_the_driver_refuses_is_not_quoted(database: "Connection[Record]") -> None:
    with pytest.raises(asyncpg.DataError) as caught:
        await database.fetch("select $1::int", SECRET)

    assert describe_error(caught.value) == "DataError 22000"


async def test_closed_connection_is_described(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.close()

    with pytest.raises(asyncpg.InterfaceError) as caught:
        await connection.fetch("select 1")

    assert describe_error(caught.value) == "InterfaceError: connection is closed"


async def test_wrong_password_is_described_without_the_password(servers: Services) -> None:
    url = str(aio_pika.connection.make_url(servers.broker_url).with_password(SECRET))
    with pytest.raises(AMQPError) as caught:
        await aio_pika.connect(url)

    assert describe_error(caught.value).startswith("ProbableAuthenticationError: ACCESS_REFUSED - Login was refused")
    assert SECRET not in describe_error(caught.value)


async def test_error_of_the_broker_has_its_reply_code_and_its_text(servers: Services) -> None:
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        with pytest.raises(AMQPError) as missing:
            await channel.declare_queue("nothing", passive=True)
        channel = await connection.channel(on_return_raises=True)
        with pytest.raises(DeliveryError) as returned:
            await channel.default_exchange.publish(aio_pika.Message(SECRET.encode()), "nothing")

    assert describe_error(missing.value).startswith(
        "ChannelNotFoundEntity 404: NOT_FOUND - no queue 'nothing' in vhost"
    )
    assert describe_error(returned.value) == "PublishError 312: NO_ROUTE"


async def test_unreachable_server_is_described_with_its_address() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(OSError, match="Connect") as caught:
            await asyncpg.connect(f"postgresql://somebody:{SECRET.replace(' ', '-')}@127.0.0.1:{port}/any")

    assert f"{port}" in describe_error(caught.value)
    assert "horse" not in describe_error(caught.value)


async def test_missed_deadline_says_so() -> None:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0):
            await asyncio.sleep(1)

    assert describe_error(caught.value) == "TimeoutError: no answer in time"


def test_credentials_in_a_text_are_left_out() -> None:
    assert describe_error(ConnectionError("amqp://somebody:hunter2@rabbitmq/ is away")) == (
        "ConnectionError: amqp://rabbitmq/ is away"
    )


def test_other_errors_are_described_by_their_class_alone() -> None:
    class Model(BaseModel):
        number: int

    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"number": SECRET})

    assert describe_error(caught.value) == "ValidationError"
    assert describe_error(KeyError(SECRET)) == "KeyError"
