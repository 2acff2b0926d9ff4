"""Access tokens: what `POST /auth/token` gives out, JWTs (RFC 9068) that every gateway can verify by itself."""

import hashlib
import time
from uuid import uuid4

import jwt

from gateway.caller import Caller
from gateway.errors import ProblemError, unauthenticated
from gateway.settings import GatewaySettings
from shared.contracts import Scope

ALGORITHM = "HS256"
TYPE = "at+jwt"
CLAIMS = ["exp", "iat", "iss", "aud", "sub", "jti", "scope", "credentials_version"]
CLOCK_SKEW_SECONDS = 5


class AccessTokens:
    """Issues tokens and reads them back; the first key signs, every key verifies, `kid` tells which."""

    def __init__(self, settings: GatewaySettings) -> None:
        secrets = [key.get_secret_value().encode() for key in settings.signing_keys]
        self._keys = {key_id(secret): secret for secret in reversed(secrets)}
        self._signing_id = key_id(secrets[0])
        self._issuer = settings.token_issuer
        self.lifetime_seconds = settings.token_lifetime_seconds

    def issue(self, owner: int, credentials_version: int, scopes: frozenset[Scope]) -> str:
        """A token for a user who has just proved the password."""
        now = int(time.time())
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
        """Who holds the token; raises ProblemError 401 where it is not valid by itself."""
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") != TYPE:
                raise invalid_token()
            claims = jwt.decode(
                token,
                self._keys[header["kid"]],
                [ALGORITHM],
                {"require": CLAIMS},
                audience=self._issuer,
                issuer=self._issuer,
                leeway=CLOCK_SKEW_SECONDS,
            )
            scopes = frozenset(map(Scope, claims["scope"].split()))
            return Caller(int(claims["sub"]), int(claims["credentials_version"]), scopes, claims["exp"])
        except (jwt.InvalidTokenError, KeyError, ValueError):
            raise invalid_token() from None


def key_id(secret: bytes) -> str:
    """What names the key in a token's header."""
    return hashlib.sha256(b"inkwell key id" + secret).hexdigest()[:8]


def invalid_token() -> ProblemError:
    """401: expired, revoked, or never one of this deployment's; which of them is not told."""
    return unauthenticated("invalid_token", "The token is expired, revoked, or not one of this deployment's")
