"""A gateway's check-up: `python -m gateway doctor`."""

from collections.abc import AsyncIterator

from gateway.settings import GatewaySettings
from shared.database import connect
from shared.doctor import Finding, Level, check_broker, check_database, check_secrets, judge, report, run_checks

NAME = "inkwell-gateway doctor"
TABLES = ("users", "notes", "commands", "personal_tokens")
LACKING = """
select coalesce(array_agg(name order by name), '{}') from unnest($1::text[]) as name
where to_regclass(name) is null or not has_any_column_privilege(name, 'select')
"""
MAY_WRITE = """
select coalesce(bool_or(has_table_privilege(oid, 'insert, update, delete, truncate')), false)
    or has_schema_privilege('public', 'create')
from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'
"""
IS_BOUNDED = """
select rolconnlimit >= 0 and not has_function_privilege('pg_advisory_lock(bigint)', 'execute')
    and not has_column_privilege('commands', 'command', 'select')
from pg_roles where rolname = current_user
"""


async def examine(settings: GatewaySettings, *, as_json: bool) -> int:
    """Run all checks and print their findings; returns the exit code, 1 if there is a problem."""
    findings = [check_secrets(settings)]
    findings += await run_checks("Postgres", check_database(settings, NAME), "see its log; meanwhile reads get 503")
    findings += await run_checks("role", check_role(settings), "see above")
    findings += await run_checks("broker", check_broker(settings, NAME), "see its log; meanwhile writes get 503")
    return report(findings, as_json=as_json)


async def check_role(settings: GatewaySettings) -> AsyncIterator[Finding]:
    """Check that the gateway's role may read, and nothing else: a compromised gateway must not be able to write."""
    session = await connect(settings.database_url, NAME)
    try:
        lacking = await session.fetchval(LACKING, TABLES)
        may_write = await session.fetchval(MAY_WRITE)
        is_bounded = not lacking and await session.fetchval(IS_BOUNDED)
    finally:
        session.terminate()
    if lacking:
        advice = "connect as inkwell_gateway (see dev/roles.sql), and run the migrations, which grant its rights"
        yield Finding(Level.PROBLEM, "role", f"may not read {', '.join(lacking)}", advice)
        return
    yield judge(
        "role",
        "may write" if may_write else "may only read",
        ok=not may_write,
        advice="connect as inkwell_gateway (see dev/roles.sql): the gateway only needs to read",
    )
    yield judge(
        "bounds of the role",
        "set as in dev/roles.sql" if is_bounded else "missing: the role may use up all connections and hold any lock",
        ok=is_bounded,
        advice="as an administrator, run dev/roles.sql again",
        level=Level.WARNING,
    )
