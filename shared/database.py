"""Connects to Postgres, runs compiled statements, and checks the schema's revision."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncpg
from asyncpg.cursor import Cursor
from pydantic import Secret
from sqlalchemy import Table
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.visitors import iterate

from shared.addresses import Address, connect_to_any
from shared.database_url import DatabaseUrl
from shared.primary import Primary, identify
from shared.primary import Session as Session  # noqa: PLC0414 - its public place
from shared.tables import SCHEMA_REVISION
from shared.tracing import Attributes, Span, SpanKind, start_span

CONNECT_TIMEOUT_SECONDS = 5.0
"""For all addresses of a URL together; a `connect_timeout` in the URL applies to each instead."""
STATEMENT_TIMEOUT_SECONDS = 10.0
EXIT_SCHEMA_BEHIND = 3
SCHEMA_REMEDY = "run `alembic upgrade head` with the migrator's INKWELL_DATABASE_URL"
NEXT_HOST = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
)
"""Errors after which another address is tried."""
SESSION_SETTINGS = {
    "timezone": "UTC",
    # A client that vanishes in a transaction leaves its locks held for this long, and its successor waits for them.
    "idle_in_transaction_session_timeout": str(int(STATEMENT_TIMEOUT_SECONDS * 1000)),
    # Ends statements whose client is gone; otherwise replaced connections would leave extra sessions running.
    "client_connection_check_interval": "250",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class SchemaBehindError(Exception):
    """The database lacks migrations that this version needs."""

    def __init__(self, found: str | None) -> None:
        super().__init__(
            f"the database's schema is at {found or 'nothing'}, this version needs {SCHEMA_REVISION}: {SCHEMA_REMEDY}, "
            "then start again"
        )


class NotPrimaryError(ConnectionError):
    """The server is a standby, or accepts no writes."""


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL compiled once by SQLAlchemy and run by asyncpg, which prepares it once on each connection."""

    sql: str
    parameters: tuple[str, ...]
    settings: str = ""
    """`set local` statements that run before each execution, in its transaction."""
    summary: str = ""
    """Its operations and tables, the name of its spans."""
    attributes: Attributes = field(default_factory=dict)
    """The attributes of its spans."""

    @classmethod
    def compile(cls, clause: ClauseElement, settings: str = "") -> "Statement":
        """Compile a statement with named parameters."""
        compiled = clause.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - narrows the type
        summary = summarize(clause)
        return cls(str(compiled), tuple(compiled.positiontup or ()), settings, summary, build_span_attributes(summary))

    def start_span(self) -> Span:
        """Start a span for one execution."""
        return start_span(self.summary, self.attributes, SpanKind.CLIENT)

    async def fetch(self, session: Session, **values: object) -> list[asyncpg.Record]:
        """Return the rows; raises asyncpg's errors, after which the session must not be reused.

        Raises KeyError if a parameter has no value.
        """
        arguments = [values[name] for name in self.parameters]
        with self.start_span():
            if self.settings:
                return await self._fetch_with_settings(session, arguments)
            return await session.fetch(self.sql, *arguments)

    async def open_cursor(self, session: Session, **values: object) -> "Cursor[asyncpg.Record]":
        """Return a cursor over the rows, in the session's transaction; raises as `fetch`."""
        return await session.cursor(self.sql, *(values[name] for name in self.parameters))

    async def _fetch_with_settings(self, session: Session, arguments: list[object]) -> list[asyncpg.Record]:
        transaction = session.transaction(readonly=True)
        await transaction.start()
        await session.execute(self.settings)
        rows = await session.fetch(self.sql, *arguments)
        await transaction.commit()  # no rollback on errors: a lost server would not answer it
        return rows


def summarize(clause: ClauseElement) -> str:
    """Return a statement's operations and tables in the form of OpenTelemetry's `db.query.summary`."""
    parts = list(iterate(clause))
    writes = [f"{each.__visit_name__.upper()} {each.table}" for each in parts if isinstance(each, UpdateBase)]
    tables = dict.fromkeys(str(each.name) for each in parts if isinstance(each, Table))
    return " ".join(writes or ["SELECT", *tables])


def build_span_attributes(summary: str) -> Attributes:
    """Return the attributes of a statement's spans."""
    operation, _, _ = summary.partition(" ")
    return {"db.system.name": "postgresql", "db.operation.name": operation, "db.query.summary": summary}


BEGIN = build_span_attributes("BEGIN")
COMMIT = build_span_attributes("COMMIT")


def start_begin_span() -> Span:
    """Start a span for a BEGIN."""
    return start_span("BEGIN", BEGIN, SpanKind.CLIENT)


def start_commit_span() -> Span:
    """Start a span for a COMMIT."""
    return start_span("COMMIT", COMMIT, SpanKind.CLIENT)


def milliseconds_before(deadline_seconds: float) -> str:
    """Return a `statement_timeout` shortly before a client-side deadline, so that the error has an SQLSTATE."""
    return str(int(deadline_seconds * 900))


async def connect(
    url: Secret[DatabaseUrl],
    application_name: str,
    statement_timeout_seconds: float | None = STATEMENT_TIMEOUT_SECONDS,
    session_settings: Mapping[str, str] | None = None,
) -> Session:
    """Connect to the primary; the session is in UTC, and its statements have this timeout unless it is None.

    Raises asyncpg's errors, or NotPrimaryError or FormerPrimaryError, which are OSErrors.
    """
    address = url.get_secret_value()
    arguments = address.connect_arguments(application_name) | {"command_timeout": statement_timeout_seconds}
    deadline = {"statement_timeout": milliseconds_before(statement_timeout_seconds or 0)}
    settings = _set({**SESSION_SETTINGS, **deadline, **(session_settings or {})})
    return await connect_to_any(
        address.hosts_to_try(),
        partial(_connect_to_one, arguments, settings, Primary.of(address)),
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
        raise NotPrimaryError("the server is a standby, or accepts no writes") from None
    try:
        # Not as start-up parameters: a pooler such as PgBouncer rejects those that it does not know.
        await session.execute(settings, timeout=seconds)
        primary.admit(session, await identify(session, seconds))
    except BaseException:
        session.terminate()
        raise
    return session


class LoopToAddress:
    """The running event loop, except that connections to a host go to one of its addresses.

    asyncpg accepts only a host name, and tries all its addresses within one deadline. This wrapper keeps the name, by
    which certificates and password files are looked up; a cancel request reaches the same server.
    """

    def __init__(self, address: Address) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of the loop
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
    """Return SQL that changes the settings of a session."""
    return "; ".join(f"set {name} to '{value}'" for name, value in settings.items())


async def check_schema(url: Secret[DatabaseUrl], application_name: str) -> None:
    """Raise SchemaBehindError if migrations are missing, or asyncpg's errors if Postgres is unavailable.

    A newer schema is accepted: the database is expanded first and contracted last.
    """
    session = await connect(url, application_name)
    try:
        found = await find_schema_revision(session)
    finally:
        session.terminate()
    if is_behind(found):
        raise SchemaBehindError(found)


async def find_schema_revision(session: Session) -> str | None:
    """Return the revision of the database's schema; None if no migration has run."""
    try:
        revision: str | None = await session.fetchval("select version_num from alembic_version")
    except asyncpg.UndefinedTableError:
        return None
    return revision


def is_behind(revision: str | None) -> bool:
    """Whether a schema lacks migrations that this version needs."""
    return revision is None or revision < SCHEMA_REVISION
