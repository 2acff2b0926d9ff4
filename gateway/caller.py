"""The caller of a request."""

import math
from dataclasses import dataclass
from typing import Protocol

from shared.contracts import Scope
from shared.tables import IMPLICIT_OWNER

EVERY_SCOPE = frozenset(Scope)


@dataclass(slots=True)
class Caller:
    """The owner that a request acts for, and what its credentials allow."""

    owner: int
    credentials_version: int
    """Outdated as soon as the owner's version differs; reads and the worker compare it in their SQL."""
    scopes: frozenset[Scope] = EVERY_SCOPE
    expires_at: float = math.inf
    """Seconds since the epoch."""
    confirmed_at: float = -math.inf
    """When Postgres last confirmed the credentials, by the event loop's clock."""


IMPLICIT_CALLER = Caller(IMPLICIT_OWNER, credentials_version=1)
"""The caller of every request without authentication."""


class Authentication(Protocol):
    """Authenticates callers."""

    async def authenticate(
        self, authorization: bytes | None, *, confirm: bool, trust_seconds: float | None = None
    ) -> Caller:
        """Return the caller with this `Authorization` header; raises ProblemError 401 or 503.

        Writes `confirm`, reads do not: their SQL checks the version of the credentials, though not whether a personal
        token is revoked. `trust_seconds` is how long ago the last check against Postgres may have been, by default 30.
        """

    async def authenticate_again(self, authorization: bytes | None) -> Caller:
        """As `authenticate`, but checked against Postgres now, if that answers, whatever was confirmed before."""

    def forget(self, owner: int) -> None:
        """Forget what is cached about the owner's credentials, because they may have changed."""
