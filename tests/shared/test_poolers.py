"""Behind PgBouncer in session mode, and with TLS and a Unix socket, which the test servers lack."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from pydantic import Secret

from dev.backend import Services
from gateway.reads.queries import SESSION_SETTINGS
from gateway.settings import GatewaySettings
from shared.database import connect
from shared.database_url import DatabaseUrl
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from tests.support.isolation import alembic
from tests.support.pgbouncer import PGBOUNCER, Pooler, pgbouncer
from worker.settings import WorkerSettings

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer: apt-get install pgbouncer")
SELF_SIGNED = [
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
    *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
]
WITH_TLS = {
    "client_tls_sslmode": "require",
    "client_tls_cert_file": "{folder}/server.crt",
    "client_tls_key_file": "{folder}/server.key",
}
SLEEPING = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'"


@pytest.fixture
async def pooler(servers: Services) -> AsyncIterator[Pooler]:
    async with pgbouncer(servers.database_url, {"pool_mode": "session"}) as running:
        yield running


def behind(pooler: Pooler, settings: GatewaySettings | WorkerSettings, role: str) -> dict[str, object]:
    url = pooler.url(settings.database_url.get_secret_value(), role).render_as_string(hide_password=False)
    return settings.model_dump() | {"database_url": url}


async def test_reads_and_writes_work_behind_a_pooler_of_sessions(
    pooler: Pooler, gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    of_gateway = GatewaySettings.model_validate(behind(pooler, gateway_settings, "inkwell_gateway"))
    of_worker = WorkerSettings.model_validate(behind(pooler, worker_settings, "inkwell_worker"))
    async with harness.worker(of_worker) as consumer, harness.gateway(of_gateway) as client:
        created = await asyncio.gather(*(client.post("/notes", json=NOTE) for _ in range(20)))
        listed = await asyncio.gather(*(client.get("/notes") for _ in range(20)))
        found = await client.get("/notes/search", params={"q": NOTE["title"]})
        changed = await client.patch("/notes/1", json={"title": "Blue ink"})

        assert [each.status_code for each in created] == [201] * 20
        assert [len(each.json()) for each in listed] == [20] * 20
        assert (found.json()["total"], changed.status_code) == (20, 200)
        assert consumer.slot == 0


async def test_migration_works_behind_a_pooler_of_sessions(pooler: Pooler, database_url: str) -> None:
    url = pooler.url(database_url, "inkwell_migrator").render_as_string(hide_password=False)

    alembic(url, "downgrade", "-1")
    alembic(url, "upgrade", "head")

    assert "(head)" in alembic(url, "current")


@pytest.mark.parametrize("is_pooled", [True, False])
async def test_session_has_its_settings(pooler: Pooler, gateway_settings: GatewaySettings, *, is_pooled: bool) -> None:
    own = GatewaySettings.model_validate(behind(pooler, gateway_settings, "inkwell_gateway"))
    session = await connect((own if is_pooled else gateway_settings).database_url, "test", 7.0, SESSION_SETTINGS)
    names = ("timezone", "statement_timeout", "idle_in_transaction_session_timeout", "enable_sort", "application_name")
    try:
        assert [await session.fetchval(f"show {name}") for name in names] == ["UTC", "6300ms", "10s", "off", "test"]
        assert await session.fetchval("select current_setting('pg_trgm.word_similarity_threshold')") == "0.3"
    finally:
        await session.close()


async def test_session_is_reset_for_the_next_client(pooler: Pooler, gateway_settings: GatewaySettings) -> None:
    url = pooler.url(gateway_settings.database_url.get_secret_value(), "inkwell_gateway")
    session = await connect(Secret(DatabaseUrl.parse(url.render_as_string(hide_password=False))), "test", None)
    backend = await session.fetchval("select pg_backend_pid()")
    session.terminate()

    async def is_given_again() -> bool:
        next_one = await asyncpg.connect(url.render_as_string(hide_password=False))
        try:
            assert await next_one.fetchval("show idle_in_transaction_session_timeout") == "0"
            return bool(await next_one.fetchval("select pg_backend_pid()") == backend)
        finally:
            await next_one.close()

    await eventually(is_given_again)


async def test_abandoned_statement_ends_behind_a_pooler_too(
    pooler: Pooler, gateway_settings: GatewaySettings, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    own = GatewaySettings.model_validate(behind(pooler, gateway_settings, "inkwell_gateway"))
    session = await connect(own.database_url, "test")
    sleeping = asyncio.create_task(session.fetch("select pg_sleep(9)"))

    async def are_sleeping() -> bool:
        return bool(await database.fetchval(SLEEPING))

    async def are_awake() -> bool:
        return not await database.fetchval(SLEEPING)

    await eventually(are_sleeping)
    session.terminate()
    await asyncio.gather(sleeping, return_exceptions=True)

    await eventually(are_awake, within_seconds=3)


@pytest.mark.parametrize("host", ["{encoded}:{port}/{database}?", "/{database}?host={folder}&port={port}&"])
async def test_server_may_be_a_socket(
    pooler: Pooler, gateway_settings: GatewaySettings, database: "asyncpg.Connection[asyncpg.Record]", host: str
) -> None:
    name = await database.fetchval("select current_database()")
    encoded = str(pooler.folder).replace("/", "%2F")
    place = host.format(encoded=encoded, folder=pooler.folder, port=pooler.port, database=name)
    url = f"postgresql://inkwell_gateway:inkwell_gateway@{place}connect_timeout=3"

    settings = GatewaySettings.model_validate(gateway_settings.model_dump() | {"database_url": url})
    session = await connect(settings.database_url, "test")

    assert await session.fetchval("select current_database()") == name
    await session.close()


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """The files of a certificate for loopback, signed by its own key."""
    files = {name: tmp_path / name for name in ("server.key", "server.crt")}
    command = [*SELF_SIGNED, "-keyout", str(files["server.key"]), "-out", str(files["server.crt"])]
    subprocess.run(command, check=True, capture_output=True)
    return {name: file.read_text() for name, file in files.items()}


@pytest.fixture
async def secured(servers: Services, certificate: dict[str, str]) -> AsyncIterator[Pooler]:
    """A pooler that requires TLS."""
    async with pgbouncer(servers.database_url, WITH_TLS, **certificate) as running:
        yield running


@pytest.mark.parametrize(
    ("parameters", "is_trusted"),
    [
        ("sslmode=require", True),
        ("ssl=true", True),
        ("sslmode=require&channel_binding=prefer&sslsni=1&gssencmode=disable", True),
        ("sslmode=verify-full&sslrootcert={folder}/server.crt", True),
        ("sslmode=verify-ca&sslrootcert={folder}/server.crt&ssl_min_protocol_version=TLSv1.3", True),
        ("sslmode=require&sslrootcert={folder}/server.crt", True),
        ("sslrootcert=system", False),
        ("sslmode=verify-full&sslrootcert=system", False),
        ("sslmode=disable", False),
    ],
)
async def test_server_is_trusted_as_the_url_says(
    secured: Pooler, gateway_settings: GatewaySettings, parameters: str, *, is_trusted: bool
) -> None:
    url = secured.url(gateway_settings.database_url.get_secret_value(), "inkwell_gateway")
    text = f"{url.render_as_string(hide_password=False)}?{parameters.format(folder=secured.folder)}"
    settings = GatewaySettings.model_validate(gateway_settings.model_dump() | {"database_url": text})
    if is_trusted:
        session = await connect(settings.database_url, "test")
        assert await session.fetchval("select 1") == 1
        await session.close()
    else:
        with pytest.raises((OSError, asyncpg.PostgresError)):
            await connect(settings.database_url, "test")
