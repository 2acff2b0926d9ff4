"""Access tokens, issued by `POST /auth/token`: JWTs (RFC 9068) that every gateway can verify by itself."""

import hashlib
from base64 import urlsafe_b64decode
from typing import Annotated, Literal
from uuid import uuid4

import jwt
from pydantic import BaseModel, Field

from gateway.caller import Caller
from gateway.http.parameters import INTEGER
from gateway.problems import INVALID_TOKEN, INVALID_TOKEN_CHALLENGE, ProblemError
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.contracts import MAX_VERSION, Scope

ALGORITHM = "HS256"
TYPE = "at+jwt"
CLOCK_SKEW_SECONDS = 5

Seconds = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Since the epoch."""


class Header(BaseModel, strict=True, extra="forbid"):
    """A token's header; any other member makes the token invalid."""

    alg: Literal["HS256"]
    typ: Literal["at+jwt"]
    kid: str


class Claims(BaseModel, strict=True):
    """A token's claims; unknown claims, which a later version may add, are ignored."""

    exp: Seconds
    iat: Seconds
    nbf: Seconds = 0
    iss: str
    aud: str
    sub: Annotated[int, Field(ge=1, le=2**63 - 1), INTEGER]
    jti: str
    scope: str
    credentials_version: Annotated[int, Field(ge=1, le=MAX_VERSION)]


class AccessTokens:
    """Issues and verifies tokens: the first key signs, and `kid` names the key that verifies."""

    def __init__(self, settings: GatewaySettings, clock: Clock) -> None:
        secrets = [key.get_secret_value().encode() for key in settings.signing_keys]
        self._keys = {build_key_id(secret): secret for secret in reversed(secrets)}
        self._signing_id = build_key_id(secrets[0])
        self._signatures = jwt.PyJWS()
        self._issuer = settings.token_issuer
        self._clock = clock
        self.lifetime_seconds = settings.token_lifetime_seconds

    def issue(self, owner: int, credentials_version: int, scopes: frozenset[Scope]) -> str:
        """Return a token for a user whose password has been verified."""
        now = int(self._clock.timestamp())
        claims = {
            "exp": now + self.lifetime_seconds,
            "iat": now,
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": str(owner),
            "jti": str(uuid4()),
            "scope": " ".join(sorted(scopes)),
            "credentials_version": credentials_version,
        }
        headers = {"kid": self._signing_id, "typ": TYPE}
        return jwt.encode(claims, self._keys[self._signing_id], ALGORITHM, headers)

    def read(self, token: str) -> Caller:
        """Return the token's holder; raises ProblemError 401 if its signature, times or claims are invalid."""
        if "=" in token:  # PyJWT accepts padding, which would give a token a second encoding
            raise build_token_problem()
        try:
            # PyJWT would parse the header with `json`, which raises RecursionError on deep nesting.
            header = Header.model_validate_json(urlsafe_b64decode(token.partition(".")[0] + "=="))
            payload = self._signatures.decode(token, self._keys[header.kid], [ALGORITHM])
            claims = Claims.model_validate_json(payload)
            scopes = frozenset(map(Scope, claims.scope.split()))
        except (jwt.InvalidTokenError, KeyError, ValueError):
            raise build_token_problem() from None
        now = self._clock.timestamp()
        is_current = max(claims.iat, claims.nbf) - CLOCK_SKEW_SECONDS <= now < claims.exp + CLOCK_SKEW_SECONDS
        if not is_current or {claims.iss, claims.aud} != {self._issuer}:
            raise build_token_problem()
        return Caller(claims.sub, claims.credentials_version, scopes, claims.exp)


def build_key_id(secret: bytes) -> str:
    """Return the key's id, for a token's header."""
    return hashlib.sha256(b"inkwell key id" + secret).hexdigest()[:8]


def build_token_problem() -> ProblemError:
    """Return a 401 that does not reveal whether the token is expired, revoked or forged."""
    return ProblemError(INVALID_TOKEN, headers=INVALID_TOKEN_CHALLENGE)
