"""Authenticates bearer tokens, and checks them against the owner's current credentials in Postgres.

A read's own SQL checks the credentials. A write's are checked here at most every 30 s, and again by the worker; while
Postgres does not answer, a valid access token may write, and so may a personal token that was confirmed lately.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from gateway.auth.access_tokens import AccessTokens, build_token_problem
from gateway.auth.keys import TOKEN_PREFIX
from gateway.auth.personal_tokens import digest
from gateway.caller import IMPLICIT_CALLER, Caller
from gateway.problems import NOT_AUTHENTICATED, REALM, ProblemError
from gateway.reads.errors import CredentialsOutdatedError, DatabaseUnavailableError
from gateway.reads.queries import Queries
from shared.clock import Clock

TRUST_SECONDS = 30.0
"""How long a caller is trusted after Postgres has confirmed the credentials."""
REMEMBERED_SECONDS = 600.0
"""How long after that a personal token may still write while Postgres does not answer.

Longer than Postgres takes to restart or to fail over. No worker looks at tokens, so a revoked one writes for as long.
"""
KNOWN_CALLERS_LIMIT = 10_000
CHECK_TIMEOUT_SECONDS = 0.5
"""Precedes the write's own wait, within the second by which a response may exceed its deadline."""
AWAY_SECONDS = 2.0
"""How long checks are skipped after Postgres has not answered one."""
T = TypeVar("T")


class NoAuthentication:
    """Treats every caller as the implicit owner."""

    async def authenticate(
        self,
        _: bytes | None,
        *,
        confirm: bool,  # noqa: ARG002 - as the protocol has it
        trust_seconds: float | None = None,  # noqa: ARG002 - as the protocol has it
    ) -> Caller:
        """Return the implicit owner."""
        return IMPLICIT_CALLER

    async def authenticate_again(self, _: bytes | None) -> Caller:
        """Return the implicit owner."""
        return IMPLICIT_CALLER

    def forget(self, owner: int) -> None:
        """Do nothing: there are no credentials."""


class BearerTokens:
    """Access tokens and personal tokens."""

    def __init__(self, access_tokens: AccessTokens, queries: Queries, clock: Clock) -> None:
        self._access_tokens = access_tokens
        self._queries = queries
        self._clock = clock
        self._known: OrderedDict[str, Caller] = OrderedDict()
        """By token, the most recently used last."""
        self._forgotten = 0
        self._away_until = 0.0
        self._is_away = False

    async def authenticate(
        self, authorization: bytes | None, *, confirm: bool, trust_seconds: float | None = None
    ) -> Caller:
        """Return the token's holder, whom Postgres has confirmed at most `trust_seconds` ago, by default 30."""
        token = parse_bearer_token(authorization)
        if caller := self._known.get(token):
            self._known.move_to_end(token)
        if caller is None or caller.expires_at <= self._clock.timestamp():
            self._known.pop(token, None)
            if token.startswith(TOKEN_PREFIX):
                return await self._get_holder(token)
            caller = self._access_tokens.read(token)
            self._remember(token, caller)
        trust_seconds = TRUST_SECONDS if trust_seconds is None else trust_seconds
        if caller.confirmed_at + trust_seconds > asyncio.get_running_loop().time():
            return caller
        if token.startswith(TOKEN_PREFIX):
            return await self._confirm_holder(token, caller, is_write=confirm)
        if confirm:
            await self._confirm(token, caller)
        return caller

    async def authenticate_again(self, authorization: bytes | None) -> Caller:
        """Return the token's holder, confirmed now unless Postgres does not answer."""
        return await self.authenticate(authorization, confirm=True, trust_seconds=0.0)

    def forget(self, owner: int) -> None:
        """Forget the callers who act for the owner."""
        self._forgotten += 1
        for token in [token for token, caller in self._known.items() if caller.owner == owner]:
            del self._known[token]

    def _remember(self, token: str, caller: Caller) -> None:
        self._known[token] = caller
        if len(self._known) > KNOWN_CALLERS_LIMIT:
            self._known.popitem(last=False)

    async def _confirm(self, token: str, caller: Caller) -> None:
        """Check that the credentials are the owner's current ones; does nothing while Postgres does not answer."""
        try:
            version = await self._try(partial(self._queries.find_credentials_version, caller.owner))
        except DatabaseUnavailableError:
            return
        if version != caller.credentials_version:
            self._known.pop(token, None)
            raise CredentialsOutdatedError
        caller.confirmed_at = asyncio.get_running_loop().time()

    async def _confirm_holder(self, token: str, known: Caller, *, is_write: bool) -> Caller:
        """Check that the personal token is valid; a write does without for REMEMBERED_SECONDS."""
        try:
            return await self._get_holder(token)
        except DatabaseUnavailableError:
            if is_write and known.confirmed_at + REMEMBERED_SECONDS > asyncio.get_running_loop().time():
                return known
            raise

    async def _get_holder(self, token: str) -> Caller:
        forgotten = self._forgotten
        caller = await self._try(partial(self._queries.find_token_holder, digest(token)))
        if caller is None:
            self._known.pop(token, None)
            raise build_token_problem()
        caller.confirmed_at = asyncio.get_running_loop().time()
        if forgotten == self._forgotten:  # otherwise the query may have run before the change
            self._remember(token, caller)
        return caller

    async def _try(self, query: Callable[[], Awaitable[T]]) -> T:
        """Run a query; while Postgres is unavailable, run only one every AWAY_SECONDS and fail the others at once."""
        now = asyncio.get_running_loop().time
        if now() < self._away_until:
            raise DatabaseUnavailableError
        if self._is_away:
            self._away_until = now() + AWAY_SECONDS
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                result = await query()
        except (TimeoutError, DatabaseUnavailableError):
            self._is_away = True
            self._away_until = now() + AWAY_SECONDS
            raise DatabaseUnavailableError from None
        self._is_away = False
        self._away_until = 0.0
        return result


def parse_bearer_token(authorization: bytes | None) -> str:
    """Return the token of an `Authorization` header (RFC 6750); raises ProblemError 401."""
    if authorization is None:
        raise ProblemError(NOT_AUTHENTICATED, headers={"WWW-Authenticate": REALM})
    scheme, _, token = authorization.decode("latin-1").partition(" ")
    token = token.strip(" \t")
    if scheme.lower() != "bearer" or not token:
        raise build_token_problem()
    return token
