"""Users of the API, and tokens of every kind that must be rejected."""

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import httpx
import jwt

from gateway.auth.access_tokens import AccessTokens, build_key_id
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.contracts import Scope
from tests.support.canaries import PASSWORD

TRIES = 3


@dataclass(frozen=True)
class Person:
    """A registered user."""

    id: int
    name: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.token)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def sign_up(client: httpx.AsyncClient, name: str = "", password: str = PASSWORD) -> Person:
    """A new user, signed in."""
    name = name or f"user-{uuid4().hex[:12]}"
    patiently = {"Prefer": "wait=30"}
    for _ in range(TRIES):
        registered = await client.post("/users/", json={"name": name, "password": password}, headers=patiently)
        if registered.status_code != HTTPStatus.SERVICE_UNAVAILABLE:  # too busy to hash: nothing was written
            break
    assert registered.status_code == HTTPStatus.CREATED, registered.text
    return Person(registered.json()["id"], name, await sign_in(client, name, password))


async def sign_in(client: httpx.AsyncClient, name: str, password: str = PASSWORD, scope: str = "") -> str:
    """An access token."""
    response = await client.post("/auth/token", data={"username": name, "password": password, "scope": scope})
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


async def personal_token(client: httpx.AsyncClient, person: Person, *scopes: str) -> dict[str, Any]:
    """A new personal token, with its secret."""
    body = {"name": "script", "scopes": scopes or ["notes:read", "notes:write"]}
    response = await client.post("/auth/tokens", json=body, headers=person.headers)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


def forged(settings: GatewaySettings, owner: int, **changes: Any) -> str:
    """A valid token except for the changes: to its claims, or to `key`, `algorithm`, `kid` and `typ`."""
    key = settings.signing_keys[0].get_secret_value()
    right = AccessTokens(settings, Clock()).issue(owner, 1, frozenset(Scope))
    claims = jwt.decode(right, options={"verify_signature": False})
    headers = {"kid": changes.pop("kid", build_key_id(key.encode())), "typ": changes.pop("typ", "at+jwt")}
    key, algorithm = changes.pop("key", key), changes.pop("algorithm", "HS256")
    claims = {name: value for name, value in (claims | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers)


def invalid_tokens(settings: GatewaySettings, owner: int) -> dict[str, str]:
    """Invalid access tokens, by what is wrong with each."""
    past = int(time.time()) - 7200
    return {
        "expired": forged(settings, owner, exp=past + 3600, iat=past),
        "wrong signature": forged(settings, owner, key="x" * 32),
        "unknown key": forged(settings, owner, kid="unknown"),
        "no algorithm": forged(settings, owner, key=None, algorithm="none"),
        "another algorithm": forged(settings, owner, algorithm="HS512", key="x" * 64),
        "wrong audience": forged(settings, owner, aud="another"),
        "wrong issuer": forged(settings, owner, iss="another"),
        "no expiry": forged(settings, owner, exp=None),
        "another type": forged(settings, owner, typ="JWT"),
        "unknown scope": forged(settings, owner, scope="everything"),
        "no token": "inkwell",
        "unknown personal token": "inkwell_0123456789",
    }
