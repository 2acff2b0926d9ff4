"""Users and personal tokens, in commands and as clients see them.

A password travels as its Argon2id hash, a personal token as the digest of its secret; neither can be recovered.
"""

import re
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from precis_i18n import get_profile
from pydantic import AfterValidator, BaseModel, Field

from shared.contracts.values import PrintedTime, check_storable

NO_OWNER: Literal[0] = 0
"""The owner of a registration, which has no user yet."""
NAME_MAX_LENGTH = 64
_WRITTEN = get_profile("UsernameCasePreserved")
_FOLDED = get_profile("UsernameCaseMapped:CaseFold")
MAX_HASH_MEMORY_KIB = 65_536
MAX_HASH_PASSES = 3
MAX_HASH_LANES = 4
"""The costliest hash that a gateway verifies. To raise the cost, first upgrade every gateway to accept it."""
_HASH = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,10}),t=([0-9]{1,10}),p=([0-9]{1,10})\$[A-Za-z0-9+/]{1,64}\$[A-Za-z0-9+/]{1,128}"
)
MAX_TOKEN_DAYS = 366


def parse_username(text: str) -> str:
    """Return the normalized user name; raises ValueError if RFC 8265 does not allow it.

    Parsing the result again neither fails nor changes it, and folding it never fails.
    """
    try:
        name = str(_WRITTEN.enforce(check_storable(text)))
        is_stable = _WRITTEN.enforce(name) == name and bool(fold_name(name))
    except UnicodeEncodeError:
        is_stable = False
    if not is_stable:
        raise ValueError("must be letters, digits and ASCII punctuation, without spaces (RFC 8265)")
    if len(name) > NAME_MAX_LENGTH:
        raise ValueError(f"must have at most {NAME_MAX_LENGTH} characters, composed as Unicode does it")
    return name


def fold_name(name: str) -> str:
    """Return the key by which names are unique: without case, width and Unicode composition.

    Raises ValueError for an invalid name.
    """
    return str(_FOLDED.enforce(name))


def is_affordable_hash(text: str) -> bool:
    """Whether the text is an Argon2id hash that costs no more to verify than the gateways' own."""
    match = _HASH.fullmatch(text)
    if match is None:
        return False
    memory_kib, passes, lanes = map(int, match.groups())
    is_within_cost = memory_kib * passes <= MAX_HASH_MEMORY_KIB * MAX_HASH_PASSES
    return is_within_cost and memory_kib <= MAX_HASH_MEMORY_KIB and lanes <= MAX_HASH_LANES


def _check_affordable(text: str) -> str:
    if not is_affordable_hash(text):
        raise ValueError("must be an Argon2id hash that costs no more than a gateway's own")
    return text


PasswordHash = Annotated[str, AfterValidator(_check_affordable)]
Username = Annotated[str, Field(min_length=1, max_length=NAME_MAX_LENGTH), AfterValidator(parse_username)]


class Scope(StrEnum):
    """A permission that a token grants."""

    READ = "notes:read"
    WRITE = "notes:write"
    ACCOUNT = "account"


class Registration(BaseModel, frozen=True):
    """A new user."""

    name: Username
    password_hash: PasswordHash


class UserChange(BaseModel, frozen=True):
    """The parts of a user that change; the others stay."""

    name: Username | None = None
    password_hash: PasswordHash | None = None


class RenewedHash(BaseModel, frozen=True):
    """A new hash of the same password with the current parameters."""

    password_hash: PasswordHash


class NoData(BaseModel, frozen=True):
    """No data: the owner and the type are all that the command needs."""


class TokenRequest(BaseModel, frozen=True):
    """A new personal token, which gets its command's id."""

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX_LENGTH), AfterValidator(check_storable)]
    scopes: Annotated[tuple[Literal[Scope.READ, Scope.WRITE], ...], Field(min_length=1, max_length=2, fail_fast=True)]
    lifetime_days: Annotated[int, Field(ge=1, le=MAX_TOKEN_DAYS)]
    secret_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


class TokenTarget(BaseModel, frozen=True):
    """The personal token that a command concerns."""

    token_id: UUID


class PublicUser(BaseModel, frozen=True):
    """A user as clients see it."""

    id: int
    name: str
    created_date: PrintedTime
    updated_date: PrintedTime


class PublicToken(BaseModel, frozen=True):
    """A personal token as clients see it; only the response to its creation contains its secret."""

    id: UUID
    name: str
    scopes: tuple[Scope, ...]
    created_date: PrintedTime
    expires_date: PrintedTime
