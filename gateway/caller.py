"""The caller of a request."""

import math
from dataclasses import dataclass

from shared.contracts import Scope
from shared.tables import IMPLICIT_OWNER

EVERY_SCOPE = frozenset(Scope)


@dataclass(slots=True)
class Caller:
    """The owner that a request acts for, and what its credentials allow."""

    owner: int
    credentials_version: int
    """Outdated once the owner has another one; reads and the worker check it in their SQL."""
    scopes: frozenset[Scope] = EVERY_SCOPE
    expires_at: float = math.inf
    """Seconds since the epoch."""
    confirmed_at: float = -math.inf
    """When Postgres last confirmed the credentials, by the event loop's clock."""


IMPLICIT_CALLER = Caller(IMPLICIT_OWNER, credentials_version=1)
"""The caller of every request without authentication."""
