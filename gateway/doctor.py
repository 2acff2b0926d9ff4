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
    findings += await run_checks("Postgres", check_database(settings, NAME), "reads are 503 until it does; see its log")
    findings += await run_checks("role", check_role(settings), "see above")
    findings += await run_checks("broker", check_broker(settings, NAME), "writes are 503 until it does; see its log")
    return report(findings, as_json=as_json)


async def check_role(settings: GatewaySettings) -> AsyncIterator[Finding]:
    """Check that the gateway's role may read and, in case the gateway is compromised, nothing else."""
    session = await connect(settings.database_url, NAME)
    try:
        lacking = await session.fetchval(LACKING, TABLES)
        may_write = await session.fetchval(MAY_WRITE)
        is_bounded = not lacking and await session.fetchval(IS_BOUNDED)
    finally:
        session.terminate()
    if lacking:
        advice = "connect as inkwell_gateway, see dev/roles.sql, and run the migrations, which grant its rights"
        yield Finding(Level.PROBLEM, "role", f"may not read {', '.join(lacking)}", advice)
        return
    yield judge(
        "role",
        "may write" if may_write else "only reads",
        ok=not may_write,
        advice="connect as inkwell_gateway, see dev/roles.sql: the gateway needs to read and nothing else",
    )
    yield judge(
        "bounds of the role",
        "as dev/roles.sql sets them" if is_bounded else "are missing: it may take every session and hold every lock",
        ok=is_bounded,
        advice="an administrator runs dev/roles.sql again, as after an upgrade that says so",
        level=Level.WARNING,
    )
