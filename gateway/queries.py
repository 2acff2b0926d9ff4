"""Every SELECT of the gateway: compiled once, run on a few asyncpg connections, JSON passed through as text.

Nothing here holds a connection or a transaction while it waits for anything but Postgres.
"""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy import BigInteger, Integer, Text, Uuid, bindparam, case, func, literal_column, select, true

from gateway.caller import Caller
from gateway.settings import GatewaySettings
from shared.connections import Connections
from shared.contracts import NOBODY, Outcome, PublicToken, PublicUser, Scope
from shared.database import Statement
from shared.tables import NOTE_FIELDS, commands, note_json, notes, personal_tokens, users

# asyncpg calls it an internal error, too, when a connection ends at the wrong moment.
READ_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

NO_LIMIT = nullcontext()

log = structlog.get_logger()


_OWNER = bindparam("owner", type_=BigInteger)
_SKIP, _LIMIT = bindparam("skip", type_=BigInteger), bindparam("limit", type_=BigInteger)
_FOLDED_NAME = bindparam("folded_name", type_=Text)
_IS_LIVE = users.c.deleted_date.is_(None)
# Every read starts from its caller: no row means that the credentials are outdated, whatever else there is.
_IS_CALLER = (
    (users.c.id == _OWNER) & (users.c.credentials_version == bindparam("credentials_version", type_=Integer)) & _IS_LIVE
)
_PRINTED_NOTE = note_json(notes, {name: notes.c[name] for name in NOTE_FIELDS})
_MY_NOTE = (notes.c.owner_id == users.c.id) & (notes.c.id == bindparam("note_id", type_=BigInteger))
FIND_NOTE = Statement.compiled(
    select(case((notes.c.id.is_not(None), _PRINTED_NOTE)), notes.c.version)
    .join_from(users, notes, _MY_NOTE, isouter=True)
    .where(_IS_CALLER)
)
# A range, because with `=` Postgres may walk all notes by id, past those of everybody who wrote earlier.
_PAGE = (
    select(*(notes.c[name] for name in NOTE_FIELDS))
    .where(notes.c.owner_id.between(users.c.id, users.c.id))
    .correlate(users)
    .order_by(notes.c.owner_id, notes.c.id)
    .offset(_SKIP)
    .limit(_LIMIT)
    .subquery()
)
_PRINTED_PAGE = func.string_agg(note_json(_PAGE, {name: _PAGE.c[name] for name in NOTE_FIELDS}), literal_column("','"))
_JOINED = func.coalesce(_PRINTED_PAGE, literal_column("''"))
_NOTES = select(func.concat(literal_column("'['"), _JOINED, literal_column("']'"))).select_from(_PAGE).scalar_subquery()
LIST_NOTES = Statement.compiled(select(_NOTES).select_from(users).where(_IS_CALLER))
_OUTCOME = select(*(commands.c[name] for name in Outcome.model_fields)).where(
    commands.c.id == bindparam("command_id", type_=Uuid)
)
FIND_OUTCOME = Statement.compiled(_OUTCOME.where(commands.c.owner_id == _OWNER))
_MY_COMMAND = (commands.c.owner_id == users.c.id) & (commands.c.id == bindparam("command_id", type_=Uuid()))
POLL_OUTCOME = Statement.compiled(
    select(*(commands.c[name] for name in Outcome.model_fields))
    .join_from(users, commands, _MY_COMMAND, isouter=True)
    .where(_IS_CALLER)
)
# Until it is applied a registration is nobody's, from then on its user's.
_IS_REGISTRATION = (commands.c.owner_id == _OWNER) | (commands.c.type == literal_column("'user.register'"))
FIND_REGISTRATION = Statement.compiled(_OUTCOME.where(_IS_REGISTRATION))

FIND_USER = Statement.compiled(select(*(users.c[name] for name in PublicUser.model_fields)).where(_IS_CALLER))
FIND_PASSWORD = Statement.compiled(select(users.c.password_hash).where(_IS_CALLER))
FIND_LOGIN = Statement.compiled(
    select(users.c.id, users.c.credentials_version, users.c.password_hash).where(
        users.c.folded_name == _FOLDED_NAME, _IS_LIVE
    )
)
FIND_CREDENTIALS_VERSION = Statement.compiled(select(users.c.credentials_version).where(users.c.id == _OWNER, _IS_LIVE))
FIND_TOKEN_HOLDER = Statement.compiled(
    select(users.c.id, users.c.credentials_version, personal_tokens.c.scopes, personal_tokens.c.expires_date)
    .join_from(personal_tokens, users)
    .where(
        personal_tokens.c.secret_digest == bindparam("digest", type_=Text),
        personal_tokens.c.credentials_version == users.c.credentials_version,
        personal_tokens.c.expires_date > func.now(),
        _IS_LIVE,
    )
)
_MY_TOKEN = (personal_tokens.c.owner_id == users.c.id) & (
    personal_tokens.c.credentials_version == users.c.credentials_version
)
_TOKEN = [personal_tokens.c[name] for name in PublicToken.model_fields]
_TOKEN_ID = bindparam("token_id", type_=Uuid())
FIND_TOKEN = Statement.compiled(
    select(*_TOKEN)
    .join_from(users, personal_tokens, _MY_TOKEN & (personal_tokens.c.id == _TOKEN_ID), isouter=True)
    .where(_IS_CALLER)
)
_TOKENS = (
    select(*_TOKEN)
    .where(_MY_TOKEN)
    .correlate(users)
    .order_by(personal_tokens.c.created_date, personal_tokens.c.id)
    .offset(_SKIP)
    .limit(_LIMIT)
    .lateral()
)
LIST_TOKENS = Statement.compiled(
    select(*_TOKENS.c)
    .join_from(users, _TOKENS, true(), isouter=True)
    .where(_IS_CALLER)
    .order_by(_TOKENS.c.created_date, _TOKENS.c.id)
)

PING = Statement.compiled(select(literal_column("1")))


class DatabaseUnavailableError(Exception):
    """Postgres did not answer a read within its deadline, or refused to."""


class CredentialsOutdatedError(Exception):
    """The owner's credentials are not the caller's any more, or the owner is gone."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a password is checked against."""

    owner: int
    credentials_version: int
    password_hash: str | None


class Queries:
    """Answers reads within their deadline, or raises DatabaseUnavailableError."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._timeout_seconds = settings.read_timeout_seconds
        self._connections = Connections(settings.database_url, "inkwell-gateway", settings.read_connections)
        self._lists = asyncio.Semaphore(settings.read_connections - 1)

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    async def find_note(self, caller: Caller, note_id: int) -> tuple[str, int] | None:
        """A note as JSON, and its version."""
        [(note, version)] = await self._fetch_mine(caller, FIND_NOTE, note_id=note_id)
        return (note, version) if note else None

    async def list_notes(self, caller: Caller, skip: int, limit: int) -> str:
        """A page of notes in id order, as a JSON array; lists leave a connection for everything else."""
        [(page,)] = await self._fetch_mine(caller, LIST_NOTES, self._lists, skip=skip, limit=limit)
        return str(page)

    async def find_user(self, caller: Caller) -> PublicUser:
        """The caller's own account."""
        [row] = await self._fetch_mine(caller, FIND_USER)
        return PublicUser.model_validate(dict(row))

    async def find_password(self, caller: Caller) -> str | None:
        """The hash of the caller's password."""
        [(password_hash,)] = await self._fetch_mine(caller, FIND_PASSWORD)
        return str(password_hash) if password_hash else None

    async def find_token(self, caller: Caller, token_id: UUID) -> PublicToken | None:
        """One of the caller's personal tokens."""
        [row] = await self._fetch_mine(caller, FIND_TOKEN, token_id=token_id)
        return PublicToken.model_validate(dict(row)) if row["id"] else None

    async def list_tokens(self, caller: Caller, skip: int, limit: int) -> list[PublicToken]:
        """A page of the caller's personal tokens, the oldest first."""
        rows = await self._fetch_mine(caller, LIST_TOKENS, self._lists, skip=skip, limit=limit)
        return [PublicToken.model_validate(dict(row)) for row in rows if row["id"]]

    async def find_login(self, folded_name: str) -> Login | None:
        """The user of this name."""
        rows = await self._fetch(FIND_LOGIN, folded_name=folded_name)
        return Login(*rows[0]) if rows else None

    async def find_credentials_version(self, owner: int) -> int | None:
        """The version that the owner's credentials have now; None where the owner is gone."""
        rows = await self._fetch(FIND_CREDENTIALS_VERSION, owner=owner)
        return int(rows[0][0]) if rows else None

    async def find_token_holder(self, digest: str) -> Caller | None:
        """Who holds the personal token of this digest; None where it is not valid (any more)."""
        rows = await self._fetch(FIND_TOKEN_HOLDER, digest=digest)
        if not rows:
            return None
        owner, credentials_version, scopes, expires_date = rows[0]
        return Caller(owner, credentials_version, frozenset(map(Scope, scopes)), expires_date.timestamp())

    async def find_outcome(self, owner: int, command_id: UUID) -> Outcome | None:
        """What has been committed about a command of the owner's, or about a registration, which is nobody's."""
        statement = FIND_REGISTRATION if owner == NOBODY else FIND_OUTCOME
        rows = await self._fetch(statement, owner=owner, command_id=command_id)
        return Outcome.model_validate(dict(rows[0])) if rows else None

    async def poll_outcome(self, caller: Caller, command_id: UUID) -> Outcome | None:
        """What has been committed about a command of the caller's."""
        [row] = await self._fetch_mine(caller, POLL_OUTCOME, command_id=command_id)
        return Outcome.model_validate(dict(row)) if row["id"] else None

    async def ping(self) -> None:
        """Asks Postgres for a sign of life."""
        await self._fetch(PING)

    async def _fetch_mine(
        self,
        caller: Caller,
        query: Statement,
        room: AbstractAsyncContextManager[None] = NO_LIMIT,
        **arguments: object,
    ) -> list[asyncpg.Record]:
        """At least one row; raises CredentialsOutdatedError where the SQL does not find the caller."""
        mine = {"owner": caller.owner, "credentials_version": caller.credentials_version}
        if not (rows := await self._fetch(query, room, **mine, **arguments)):
            raise CredentialsOutdatedError
        return rows

    async def _fetch(
        self, query: Statement, room: AbstractAsyncContextManager[None] = NO_LIMIT, **arguments: object
    ) -> list[asyncpg.Record]:
        try:
            async with asyncio.timeout(self._timeout_seconds), room, self._connections.one() as connection:
                return await query.fetch(connection, **arguments)
        except READ_FAILURES as error:
            log.warning("read not answered: Postgres is away or unwilling", **reason(error))
            raise DatabaseUnavailableError from error


def reason(error: BaseException) -> dict[str, str]:
    """What the log says of a failed read."""
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        hint = "the schema is behind: run `alembic upgrade head` with the migrator's INKWELL_DATABASE_URL"
        return {"error": type(error).__name__, "hint": hint}
    return {"error": type(error).__name__}
