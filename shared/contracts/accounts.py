"""Users and their personal tokens: what commands say of them, and what clients get to see.

A password travels as its Argon2id hash, a personal token as the digest of its secret; neither can be told from it.
"""

from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from precis_i18n import get_profile
from pydantic import AfterValidator, BaseModel, Field

from shared.contracts.values import PrintedTime, StorableText, storable

NOBODY: Literal[0] = 0
"""The owner of a registration: there is no user yet."""
NAME_MAX_LENGTH = 64
_WRITTEN = get_profile("UsernameCasePreserved")
_FOLDED = get_profile("UsernameCaseMapped:CaseFold")


def username(text: str) -> str:
    """The text as a user's name, in the form that is shown; raises ValueError where RFC 8265 does not allow it.

    So every name can be folded, and is its own form.
    """
    try:
        name = str(_WRITTEN.enforce(storable(text)))
        is_stable = _WRITTEN.enforce(name) == name and bool(folded(name))
    except UnicodeEncodeError:
        is_stable = False
    if not is_stable:
        raise ValueError("must be letters, digits and ASCII punctuation, without spaces (RFC 8265)")
    if len(name) > NAME_MAX_LENGTH:
        raise ValueError(f"must have at most {NAME_MAX_LENGTH} characters, composed as Unicode does it")
    return name


def folded(name: str) -> str:
    """What no two users share: the name without its case, width and way of composing characters.

    Raises ValueError for what no user can be called.
    """
    return str(_FOLDED.enforce(name))


Username = Annotated[str, Field(min_length=1, max_length=NAME_MAX_LENGTH), AfterValidator(username)]


class Scope(StrEnum):
    """What a token allows."""

    READ = "notes:read"
    WRITE = "notes:write"
    ACCOUNT = "account"


class Registration(BaseModel, frozen=True):
    """A new user."""

    name: Username
    password_hash: StorableText


class UserChange(BaseModel, frozen=True):
    """The parts of a user that change; the others stay."""

    name: Username | None = None
    password_hash: StorableText | None = None


class Nothing(BaseModel, frozen=True):
    """The owner and the type say it all."""


class TokenRequest(BaseModel, frozen=True):
    """A new personal token, which gets its command's id."""

    name: StorableText
    scopes: tuple[Scope, ...]
    lifetime_days: Annotated[int, Field(ge=1, le=3650)]
    secret_digest: StorableText


class TokenTarget(BaseModel, frozen=True):
    """Which personal token a command is about."""

    token_id: UUID


class PublicUser(BaseModel, frozen=True):
    """A user as clients see it."""

    id: int
    name: str
    created_date: PrintedTime
    updated_date: PrintedTime


class PublicToken(BaseModel, frozen=True):
    """A personal token as clients see it; its secret is shown by the answer to its creation alone."""

    id: UUID
    name: str
    scopes: tuple[Scope, ...]
    created_date: PrintedTime
    expires_date: PrintedTime
