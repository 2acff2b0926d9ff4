"""INKWELL_DATABASE_URL: each of libpq's parameters has its effect on a real Postgres, or is rejected by name."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from pydantic import Secret
from sqlalchemy import make_url

from gateway.settings import GatewaySettings
from shared import database
from shared.database import NotPrimaryError, Session, connect
from shared.database_url import KNOWN, UNSUPPORTED, DatabaseUrl
from tests.support.programs import assert_refused, run
from tests.support.proxy import free_port

LIBPQ = """
application_name channel_binding client_encoding connect_timeout dbname fallback_application_name gssdelegation
gssencmode gsslib host hostaddr keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname
load_balance_hosts max_protocol_version min_protocol_version oauth_client_id oauth_client_secret oauth_issuer
oauth_scope options passfile password port replication require_auth requirepeer scram_client_key scram_server_key
service servicefile sslcert sslcertmode sslcompression sslcrl sslcrldir sslkey sslkeylogfile sslmode sslnegotiation
sslpassword sslrootcert sslsni ssl_max_protocol_version ssl_min_protocol_version target_session_attrs
tcp_user_timeout user
"""
"""The parameters of PostgreSQL 18's libpq (its documentation, 32.1.2)."""
ACCEPTED = [
    "connect_timeout=10",
    "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=30000",
    "sslmode=disable",
    "sslmode=prefer&sslnegotiation=postgres&sslcompression=0&sslsni=1&sslcertmode=allow",
    "channel_binding=prefer",
    "channel_binding=disable",
    "gssencmode=prefer&gssdelegation=0",
    "target_session_attrs=primary",
    "target_session_attrs=read-write",
    "load_balance_hosts=random",
    "client_encoding=UTF8",
    "options=-c%20geqo%3Doff",
    "application_name=notes&fallback_application_name=other",
    "max_protocol_version=latest&min_protocol_version=3.0",
    "replication=false",
    "sslmode=&options=",
]
REFUSED = [
    ("channel_binding=require", "channel_binding"),
    ("connect_timeout=soon", "connect_timeout"),
    ("connect_timeout=0", "connect_timeout"),
    ("keepalives_idle=-1", "keepalives_idle"),
    ("gssencmode=require", "gssencmode"),
    ("require_auth=scram-sha-256", "require_auth"),
    ("target_session_attrs=standby", "target_session_attrs"),
    ("sslmode=always", "sslmode"),
    ("sslmode=verify-full&sslrootcert=/nowhere", "sslrootcert"),
    ("sslrootcert=system&sslmode=require", "sslrootcert"),
    ("sslcert=/nowhere", "sslcert"),
    (f"sslrootcert={__file__}", "sslrootcert: is not a valid PEM file"),
    ("passfile=/nowhere", "passfile"),
    ("hostaddr=127.0.0.1", "hostaddr"),
    ("service=notes", "service"),
    ("client_encoding=LATIN1", "client_encoding"),
    ("min_protocol_version=3.2", "min_protocol_version"),
    ("keepalive_idle=30", "did you mean keepalives_idle?"),
    ("search_path=notes", "options=-c%20search_path%3D"),
    ("port=1,2", "ports"),
    ("port=70000", "port"),
]
PASSWORD = "p@ss/w?rd #&=+%25:,'\\"


def test_every_parameter_of_libpq_is_known_by_its_name() -> None:
    assert {*LIBPQ.split()} == KNOWN | UNSUPPORTED
    assert not KNOWN & UNSUPPORTED


@pytest.mark.parametrize("parameters", ACCEPTED)
async def test_parameter_is_accepted_and_the_session_works(gateway_settings: GatewaySettings, parameters: str) -> None:
    session = await session_of(gateway_settings, f"{gateway_settings.database_url.get_secret_value()}?{parameters}")

    assert await session.fetchval("select current_user") == "inkwell_gateway"
    await session.close()


async def session_of(settings: GatewaySettings, url: str) -> Session:
    """A session of a gateway with this URL."""
    changed = GatewaySettings.model_validate(settings.model_dump() | {"database_url": url})
    return await connect(changed.database_url, "test")


@pytest.mark.parametrize(("parameters", "named"), REFUSED)
def test_parameter_that_cannot_be_had_is_named(parameters: str, named: str) -> None:
    with pytest.raises(ValueError, match=named.replace("?", "[?]")):
        DatabaseUrl.parse(f"postgresql://inkwell:hunter2@127.0.0.1/inkwell?{parameters}")


@pytest.mark.parametrize("program", [("gateway", "doctor"), ("alembic", "upgrade", "head")])
def test_program_ends_where_the_url_has_a_parameter_that_cannot_be_had(program: tuple[str, ...]) -> None:
    url = "postgresql://inkwell:hunter2-hunter2@127.0.0.1:1/inkwell?channel_binding=require"

    assert_refused(run(*program, INKWELL_DATABASE_URL=url), "INKWELL_DATABASE_URL", "channel_binding")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://inkwell:hunter2/@127.0.0.1/inkwell",
        "postgresql://inkwell:hunter2?@127.0.0.1/inkwell",
        "postgresql://inkwell:hunter2?hunter2=hunter2@127.0.0.1/inkwell",
        "postgresql://inkwell:hunter2%@127.0.0.1/inkwell",
        "postgresql://inkwell:hunter2%ff@127.0.0.1/inkwell",
        "postgresql://inkwell:hunter2%00@127.0.0.1/inkwell",
        "postgresql://inkwell:hunter2",
        "postgresql://inkwell:hunter2@",
        "postgresql://inkwell:hunter2@127.0.0.1:hunter2/inkwell",
        "postgresql://inkwell:hunter2@127.0.0.1,/inkwell",
        "postgresql://inkwell:hunter2@[::1/inkwell",
        "postgresql://inkwell:hunter2@127.0.0.1/inkwell?hunter2=x",
        "http://inkwell:hunter2@127.0.0.1/inkwell",
        "hunter2",
    ],
)
def test_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        DatabaseUrl.parse(url)

    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://one", [("one", 5432)]),
        ("postgres://one:1/notes", [("one", 1)]),
        ("postgresql://u:p@one:1,two,[::1]:3/notes", [("one", 1), ("two", 5432), ("::1", 3)]),
        ("postgresql:///notes?host=one,two&port=1,2", [("one", 1), ("two", 2)]),
        ("postgresql:///notes?host=one,two&port=1", [("one", 1), ("two", 1)]),
        ("postgresql://u@:1/notes?host=one", [("one", 1)]),
        ("postgresql://%2Frun%2Fpostgresql:1/notes", [("/run/postgresql", 1)]),
        ("postgresql:///notes?host=/run/postgresql", [("/run/postgresql", 5432)]),
    ],
)
def test_hosts_are_read_as_libpq_does(url: str, hosts: list[tuple[str, int]]) -> None:
    assert list(DatabaseUrl.parse(url).hosts) == hosts


async def test_name_and_options_of_the_url_are_the_sessions(gateway_settings: GatewaySettings) -> None:
    parameters = "application_name=notes&options=-c%20geqo%3Doff%20-c%20statement_timeout%3D0"
    session = await session_of(gateway_settings, f"{gateway_settings.database_url.get_secret_value()}?{parameters}")

    names = ("application_name", "geqo", "statement_timeout")
    assert [await session.fetchval(f"show {name}") for name in names] == ["notes", "off", "9s"]
    await session.close()


async def test_password_and_database_may_have_any_character(
    gateway_settings: GatewaySettings, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    name = await database.fetchval("select current_database()")
    text = PASSWORD.replace("'", "''")
    await database.execute(f'drop role if exists "no body"; create role "no body" login password \'{text}\'')
    await database.execute(f'grant connect on database {name} to "no body"')
    place = make_url(str(gateway_settings.database_url.get_secret_value()))
    url = f"postgresql://no%20body:{quote(PASSWORD, safe='')}@{place.host}:{place.port}/{name}"
    try:
        session = await session_of(gateway_settings, url)
        assert await session.fetchval("select current_user") == "no body"
        await session.close()
    finally:
        await database.execute('drop owned by "no body"; drop role "no body"')


@pytest.mark.parametrize("parameters", ["", "?load_balance_hosts=random", "?target_session_attrs=read-write"])
async def test_host_that_answers_is_found_among_others(gateway_settings: GatewaySettings, parameters: str) -> None:
    place = make_url(str(gateway_settings.database_url.get_secret_value()))
    async with silent_host() as silent:
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{silent},{place.host}:{place.port}"
        url = f"postgresql://inkwell_gateway:inkwell_gateway@{hosts}/{place.database}{parameters}"

        async with asyncio.timeout(database.CONNECT_TIMEOUT_SECONDS):
            session = await session_of(gateway_settings, url)

    assert await session.fetchval("select 1") == 1
    await session.close()


@asynccontextmanager
async def silent_host() -> AsyncIterator[int]:
    """The port of a server that accepts connections and never answers."""

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_each_host_has_the_time_that_the_url_says() -> None:
    async with silent_host() as silent:
        url = Secret(DatabaseUrl.parse(f"postgresql://127.0.0.1:{silent},127.0.0.1:{silent}/notes?connect_timeout=1"))
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await connect(url, "test")

    assert 2 <= asyncio.get_running_loop().time() - started < 4


async def test_of_several_hosts_the_primary_is_found(
    gateway_settings: GatewaySettings, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    url = gateway_settings.database_url.get_secret_value()
    await database.execute("alter role inkwell_gateway set default_transaction_read_only = on")
    try:
        with pytest.raises(NotPrimaryError):
            await session_of(gateway_settings, f"{url}?target_session_attrs=read-write")
    finally:
        await database.execute("alter role inkwell_gateway reset default_transaction_read_only")

    assert DatabaseUrl.parse("postgresql://one,two").connect_arguments("x")["target_session_attrs"] == "primary"
    assert DatabaseUrl.parse("postgresql://one").connect_arguments("x")["target_session_attrs"] == "primary"


async def test_password_may_be_in_a_private_file(gateway_settings: GatewaySettings, tmp_path: Path) -> None:
    place = make_url(str(gateway_settings.database_url.get_secret_value()))
    file = tmp_path / "passwords"
    file.write_text(f"{place.host}:{place.port}:*:inkwell_gateway:inkwell_gateway\n")
    url = f"postgresql://inkwell_gateway@{place.host}:{place.port}/{place.database}?passfile={file}"

    file.chmod(0o600)
    await (await session_of(gateway_settings, url)).close()

    file.chmod(0o640)
    with pytest.raises(ValueError, match="passfile"):
        DatabaseUrl.parse(url)


def test_parameters_without_effect_are_reported() -> None:
    ended = run("worker", "doctor", INKWELL_DATABASE_URL="postgresql://x@127.0.0.1:1/x?keepalives_idle=30")

    assert "parameters of INKWELL_DATABASE_URL without effect" in ended.stderr
    assert "keepalives_idle" in ended.stderr
