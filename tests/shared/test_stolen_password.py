"""What an attacker can do with a service's database password: attack by attack, on a real Postgres."""

from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from sqlalchemy import make_url

from dev.backend import ROOT, Services, as_user
from shared.database import Session
from tests.support import harness
from tests.support.isolation import alembic, with_database
from tests.support.rendering import find

ROLES = ["inkwell_gateway", "inkwell_worker", "inkwell_migrator"]
OTHER_DATABASES = ["postgres", "template1"]
LOCKS = [
    "select pg_advisory_lock(1)",
    "select pg_try_advisory_lock(hashtext('inkwell housekeeping'))",
    "select pg_try_advisory_lock(hashtext('inkwell'), 0)",
    "select pg_advisory_lock_shared(1)",
    "select pg_advisory_xact_lock(1)",
    "select pg_try_advisory_xact_lock(n) from generate_series(1, 100) as n",
]
INTERFERENCE = [
    "select pg_terminate_backend({pid})",
    "select pg_cancel_backend({pid})",
    "select pg_terminate_backend({own_pid})",
    "set role {other}",
    "set session authorization {other}",
    "alter role {other} password 'x'",
    "alter role {role} superuser",
    "alter role {role} connection limit -1",
    "alter role {role} set temp_file_limit = -1",
    "set temp_file_limit = -1",
    "select pg_read_file('pg_hba.conf')",
    "select * from pg_authid",
    "select pg_reload_conf()",
    "select pg_stat_reset()",
    "alter system set max_connections = 1",
    "alter database {database} connection limit 0",
]
READ_BY_GATEWAY = {
    "alembic_version": "version_num",
    "commands": "id type owner_id fingerprint attempt_id status reason http_status note_id note_version body",
    "notes": "id owner_id title description created_date updated_date version words folded_text mod_revision",
    "personal_tokens": "id owner_id name scopes secret_digest credentials_version created_date expires_date",
    "note_versions": "note_id version owner_id body",
    "tombstones": "id owner_id title description created_date updated_date version mod_revision deleted_date",
    "users": "id credentials_version name folded_name password_hash created_date updated_date deleted_date revision "
    "purged_revision",
}
COLUMNS = """
select c.relname, a.attname from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
"""
FAILED_COMMANDS = """
insert into commands (id, status, http_status, command)
select gen_random_uuid(), 'failed', 500, '{"title": "secret"}' from generate_series(1, 100)
"""
OTHERS_STATEMENTS = """
select query from pg_stat_activity where usename <> current_user and query <> '<insufficient privilege>' and query <> ''
"""
TOO_LARGE_FOR_MEMORY = "select repeat('x', 1000) || n as text from generate_series(1, 400000) as n order by text desc"


async def assert_refused(session: Session, statement: str) -> None:
    try:
        await session.fetch(statement)
    except asyncpg.InsufficientPrivilegeError:
        return
    pytest.fail(f"`{statement}` is allowed")


@pytest.fixture
def name(database_url: str) -> str:
    """The database of the attack."""
    return str(make_url(database_url).database)


@pytest.fixture
async def administrator(servers: Services) -> AsyncIterator[Session]:
    """A session with a server whose roles and rules may be changed; skips if the server is not the tests' own."""
    if not servers.has_broker_users:
        pytest.skip("INKWELL_DATABASE_URL names a server that may have other users")
    session = await asyncpg.connect(servers.database_url)
    yield session
    await session.close()


async def test_gateway_reads_the_columns_that_it_needs_and_no_other(as_gateway: Session) -> None:
    for table, column in await as_gateway.fetch(COLUMNS):
        query = f"select {column} from {table}"  # noqa: S608 - of the catalogue
        if column in READ_BY_GATEWAY.get(table, "").split():
            await as_gateway.fetch(query)
        else:
            await assert_refused(as_gateway, query)
    for whole in ("select * from commands", "select c from commands as c", "table commands", "copy commands to stdout"):
        await assert_refused(as_gateway, whole)


async def test_commands_that_failed_are_in_no_statistics_for_the_gateway(
    as_gateway: Session, database: Session
) -> None:
    await database.execute(FAILED_COMMANDS)
    await database.execute("analyze commands")

    seen = {
        row["attname"] for row in await as_gateway.fetch("select attname from pg_stats where tablename = 'commands'")
    }

    assert "status" in seen
    assert "command" not in seen


async def test_gateway_can_hold_no_lock_that_workers_and_migrations_go_by(as_gateway: Session) -> None:
    for statement in LOCKS:
        await assert_refused(as_gateway, statement)


@pytest.mark.parametrize("owner", ["inkwell_worker", "inkwell_migrator"])
async def test_workers_and_migrations_can_hold_their_locks(database_url: str, owner: str) -> None:
    session = await asyncpg.connect(as_user(database_url, owner, owner))
    for statement in LOCKS:
        await session.fetch(statement)
    await session.close()


async def test_service_ends_no_session_and_takes_no_other_right(
    as_service: Session, role: str, name: str, database: Session
) -> None:
    pids = {"pid": database.get_server_pid(), "own_pid": as_service.get_server_pid()}
    [other] = {"inkwell_gateway", "inkwell_worker"} - {role}
    for statement in INTERFERENCE:
        await assert_refused(as_service, statement.format(**pids, role=role, other=other, database=name))


async def test_service_sees_no_statement_of_others(as_service: Session, database: Session) -> None:
    await database.execute("select 'an administrator writes'")

    assert await as_service.fetch(OTHERS_STATEMENTS) == []


async def test_sessions_of_gateways_leave_some_for_the_others(administrator: Session, database_url: str) -> None:
    own = "select rolconnlimit from pg_roles where rolname = 'inkwell_gateway'"
    limit = await administrator.fetchval(own)
    assert limit == int(await administrator.fetchval("show max_connections")) * 6 // 10
    await administrator.execute("alter role inkwell_gateway connection limit 5")
    sessions: list[Session] = []
    try:
        sessions += [await connected(database_url, "inkwell_gateway") for _ in range(5)]
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await connected(database_url, "inkwell_gateway")
        sessions.append(await connected(database_url, "inkwell_worker"))
    finally:
        await administrator.execute(f"alter role inkwell_gateway connection limit {limit}")
        for session in sessions:
            await session.close()


async def connected(database_url: str, role: str) -> Session:
    session: Session = await asyncpg.connect(as_user(database_url, role, role))
    return session


async def test_number_of_the_gateways_sessions_can_be_chosen(administrator: Session, servers: Services) -> None:
    chosen = {"inkwell.gateway_connections": "77"}
    session = await asyncpg.connect(servers.database_url, server_settings=chosen)
    try:
        await session.execute(harness.ROLES_SQL)
        own = "select rolconnlimit from pg_roles where rolname = 'inkwell_gateway'"
        assert await session.fetchval(own) == 77
    finally:
        await session.close()
        await administrator.execute(harness.ROLES_SQL)


async def test_gateways_statement_fills_no_disk(as_gateway: Session) -> None:
    with pytest.raises(asyncpg.ConfigurationLimitExceededError):
        await as_gateway.fetch(TOO_LARGE_FOR_MEMORY)


async def test_what_a_role_has_set_for_its_sessions_ends_with_a_new_password(
    as_service: Session, role: str, name: str, servers: Services, database_url: str
) -> None:
    await as_service.execute(f"alter role {role} set enable_indexscan = off")
    await as_service.execute(f"alter role {role} in database {name} set default_transaction_read_only = on")

    await harness.create_roles(with_database(servers.database_url, name))

    session = await connected(database_url, role)
    assert await session.fetchval("show enable_indexscan") == "on"
    assert await session.fetchval("show default_transaction_read_only") == "off"
    await session.close()


@pytest.mark.parametrize("role", ROLES)
async def test_role_connects_to_no_other_database(administrator: Session, servers: Services, role: str) -> None:
    await administrator.execute((ROOT / "dev/databases.sql").read_text())

    for database in OTHER_DATABASES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(with_database(servers.database_url, database, role))


@pytest.fixture
async def add_rules(administrator: Session) -> AsyncIterator[Callable[[list[str]], Awaitable[None]]]:
    """Puts access rules before the server's own, until the test ends."""
    file = await administrator.fetchval("show hba_file")
    text = await administrator.fetchval("select pg_read_file($1)", file)
    before = [line for line in text.splitlines() if line and not line.startswith("#")]

    async def write(lines: list[str]) -> None:
        rules = " union all ".join(f"select '{line}'" for line in lines)
        await administrator.execute(f"copy ({rules}) to '{file}'")
        await administrator.execute("select pg_reload_conf()")

    yield lambda added: write([*added, *before])
    await write(before)


@pytest.mark.parametrize("role", ROLES)
async def test_role_connects_to_no_other_database_by_the_rules_for_cloudnative_pg(
    servers: Services,
    database_url: str,
    name: str,
    role: str,
    add_rules: Callable[[list[str]], Awaitable[None]],
) -> None:
    cluster = find("production", "Cluster", "postgres")["spec"]
    made = cluster["bootstrap"]["initdb"]["database"]
    await add_rules([rule.replace(f" {made} ", f" {name} ") for rule in cluster["postgresql"]["pg_hba"]])

    async def is_in_force() -> bool:
        try:
            await (await asyncpg.connect(with_database(servers.database_url, "template1", role))).close()
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            return "pg_hba.conf rejects" in str(error)
        except asyncpg.InsufficientPrivilegeError:
            return False
        return False

    await harness.eventually(is_in_force)
    await (await asyncpg.connect(with_database(database_url, name, role))).close()
    await (await asyncpg.connect(with_database(servers.database_url, "postgres"))).close()


async def test_rights_of_an_earlier_version_end_with_an_upgrade(
    database: Session, name: str, servers: Services, database_url: str
) -> None:
    as_migrator = with_database(database_url, name, "inkwell_migrator")
    alembic(as_migrator, "downgrade", "0004")
    await database.execute("grant execute on function pg_advisory_lock(bigint), lo_create(oid) to public")
    await database.execute("alter role inkwell_gateway connection limit -1")
    gateway = await connected(database_url, "inkwell_gateway")
    for statement in ("select command from commands", "select pg_advisory_lock(1)", "select lo_create(0)"):
        await gateway.fetch(statement)

    alembic(as_migrator, "upgrade", "head")
    await harness.create_roles(with_database(servers.database_url, name))

    for statement in ("select command from commands", "select pg_advisory_lock(1)", "select lo_create(0)"):
        await assert_refused(gateway, statement)
    await gateway.close()
    assert await database.fetchval("select rolconnlimit from pg_roles where rolname = 'inkwell_gateway'") > 0
