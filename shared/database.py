"""Postgres: how a service connects, what it runs there, and whether the schema is one it can work with."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncpg
from pydantic import Secret
from sqlalchemy import Table
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.visitors import iterate

from shared.addresses import Address, connect_to_any
from shared.database_url import DatabaseUrl
from shared.primary import Primary, find_primary, identify
from shared.primary import Session as Session  # noqa: PLC0414 - its public place
from shared.tables import SCHEMA_REVISION
from shared.tracing import Attributes, Span, SpanKind, start_span

CONNECT_TIMEOUT_SECONDS = 5.0
"""For all addresses of a URL's hosts together, unless it says how long each may take."""
STATEMENT_TIMEOUT_SECONDS = 10.0
EXIT_SCHEMA_BEHIND = 3
NEXT_HOST = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
)
"""What may be different at another address."""
SESSION_SETTINGS = {
    "timezone": "UTC",
    # A session whose client vanished in a transaction holds its locks until then, and its successor waits for them.
    "idle_in_transaction_session_timeout": str(int(STATEMENT_TIMEOUT_SECONDS * 1000)),
    # Nor does a statement that nobody waits for any more go on, or there would be more sessions than connections.
    "client_connection_check_interval": "250",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class SchemaBehindError(Exception):
    """The database lacks migrations that this version needs."""

    def __init__(self, found: str | None) -> None:
        super().__init__(
            f"the database's schema is at {found or 'nothing'}, this version needs {SCHEMA_REVISION}: "
            "run `alembic upgrade head` with the migrator's INKWELL_DATABASE_URL, then start again"
        )


class NotPrimaryError(ConnectionError):
    """The server is a standby, or takes no writes."""


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL that SQLAlchemy wrote and asyncpg runs: compiled once, prepared once on each connection."""

    sql: str
    parameters: tuple[str, ...]
    settings: str = ""
    """SQL that sets what holds for each execution alone."""
    summary: str = ""
    """What it does to which tables, for its spans."""
    attributes: Attributes = field(default_factory=dict)
    """Those of its spans."""

    @classmethod
    def compiled(cls, clause: ClauseElement, settings: str = "") -> "Statement":
        """Compiles a statement whose parameters have names."""
        compiled = clause.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - as every statement is compiled
        summary = summary_of(clause)
        return cls(str(compiled), tuple(compiled.positiontup or ()), settings, summary, attributes_of(summary))

    def start_span(self) -> Span:
        """A span of an execution."""
        return start_span(self.summary, self.attributes, SpanKind.CLIENT)

    async def fetch(self, session: Session, **values: object) -> list[asyncpg.Record]:
        """The rows; raises what asyncpg raises, and then the session is fit for nothing more.

        Raises KeyError where a parameter has no value.
        """
        arguments = [values[name] for name in self.parameters]
        with self.start_span():
            if self.settings:
                return await self._fetch_with_settings(session, arguments)
            return await session.fetch(self.sql, *arguments)

    async def _fetch_with_settings(self, session: Session, arguments: list[object]) -> list[asyncpg.Record]:
        transaction = session.transaction(readonly=True)
        await transaction.start()
        await session.execute(self.settings)
        rows = await session.fetch(self.sql, *arguments)
        await transaction.commit()  # not rolled back where something failed: a server that is away does not answer
        return rows


def summary_of(clause: ClauseElement) -> str:
    """The operations of a statement and their tables, as `db.query.summary` has them."""
    parts = list(iterate(clause))
    writes = [f"{each.__visit_name__.upper()} {each.table}" for each in parts if isinstance(each, UpdateBase)]
    tables = dict.fromkeys(str(each.name) for each in parts if isinstance(each, Table))
    return " ".join(writes or ["SELECT", *tables])


def attributes_of(summary: str) -> Attributes:
    """The attributes of a statement's spans."""
    operation, _, _ = summary.partition(" ")
    return {"db.system.name": "postgresql", "db.operation.name": operation, "db.query.summary": summary}


BEGIN, COMMIT = attributes_of("BEGIN"), attributes_of("COMMIT")


def start_begin_span() -> Span:
    """A span for the start of a transaction."""
    return start_span("BEGIN", BEGIN, SpanKind.CLIENT)


def start_commit_span() -> Span:
    """A span for its end."""
    return start_span("COMMIT", COMMIT, SpanKind.CLIENT)


def milliseconds_before(deadline_seconds: float) -> str:
    """A `statement_timeout` shortly before a client-side deadline, so that the error has an SQLSTATE."""
    return str(int(deadline_seconds * 900))


async def connect(
    url: Secret[DatabaseUrl],
    application_name: str,
    statement_timeout_seconds: float | None = STATEMENT_TIMEOUT_SECONDS,
    session_settings: Mapping[str, str] | None = None,
) -> Session:
    """A session at the primary in UTC, whose statements have a deadline unless it is None.

    Raises what asyncpg raises, NotPrimaryError or FormerPrimaryError, of which both are OSErrors.
    """
    address = url.get_secret_value()
    arguments = address.connect_arguments(application_name) | {"command_timeout": statement_timeout_seconds}
    deadline = {"statement_timeout": milliseconds_before(statement_timeout_seconds or 0)}
    settings = _set({**SESSION_SETTINGS, **deadline, **(session_settings or {})})
    return await connect_to_any(
        address.hosts_to_try(),
        partial(_connect_to_one, arguments, settings, find_primary(address)),
        NEXT_HOST,
        CONNECT_TIMEOUT_SECONDS,
        address.connect_timeout_seconds,
    )


async def _connect_to_one(
    arguments: dict[str, Any], settings: str, primary: Primary, address: Address, seconds: float
) -> Session:
    loop: Any = asyncio.get_running_loop() if address.ip == address.host else LoopToAddress(address)
    try:
        session: Session = await asyncpg.connect(
            **arguments, host=address.host, port=address.port, loop=loop, timeout=seconds
        )
    except asyncpg.TargetServerAttributeNotMatched:
        raise NotPrimaryError("the server is a standby, or takes no writes") from None
    try:
        # Not while connecting: a pooler refuses settings that it does not know.
        await session.execute(settings, timeout=seconds)
        primary.admit(session, await identify(session, seconds))
    except BaseException:
        session.terminate()
        raise
    return session


class LoopToAddress:
    """The running event loop, except that connections to a host go to one address of it.

    The driver takes a name alone, and tries all its addresses within one deadline. With the loop in between it keeps
    the name, which certificates and password files are looked up by; a cancel request finds the same server.
    """

    def __init__(self, address: Address) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the loop has
        return getattr(self._loop, name)

    async def create_connection(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,
        **arguments: Any,  # noqa: ANN401 - the loop's
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """Connect to the address; TLS expects the host's certificate."""
        if arguments.get("ssl"):
            arguments["server_hostname"] = host
        return await self._loop.create_connection(factory, self._address.ip, port, **arguments)


def _set(settings: Mapping[str, str]) -> str:
    """SQL that sets them for the session."""
    return "; ".join(f"set {name} to '{value}'" for name, value in settings.items())


async def check_schema(url: Secret[DatabaseUrl], application_name: str) -> None:
    """Raises SchemaBehindError where migrations are missing, or asyncpg's errors while Postgres is away.

    A newer schema is accepted: the database is expanded first and contracted last.
    """
    connection = await connect(url, application_name)
    try:
        found = await connection.fetchval("select version_num from alembic_version")
    except asyncpg.UndefinedTableError:
        found = None
    finally:
        connection.terminate()
    if found is None or found < SCHEMA_REVISION:
        raise SchemaBehindError(found)
