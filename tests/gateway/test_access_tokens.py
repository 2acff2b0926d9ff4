"""Access tokens with a valid signature but impossible claims, and malformed tokens."""

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jwt
import pytest

from gateway.auth.access_tokens import AccessTokens, build_key_id
from gateway.problems import ProblemError
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.contracts import Scope
from tests.support import harness
from tests.support.accounts import bearer, forged, sign_up

SETTINGS = harness.settings_without_servers(auth="password", read_timeout_seconds=0.5)
KEY = SETTINGS.signing_keys[0].get_secret_value().encode()
HEADER = {"alg": "HS256", "kid": build_key_id(KEY), "typ": "at+jwt"}
CLAIMS = jwt.decode(AccessTokens(SETTINGS, Clock()).issue(1, 1, frozenset(Scope)), options={"verify_signature": False})
NESTED = "[" * 100_000 + "]" * 100_000
DEEP = '{"a":' * 5000 + "1" + "}" * 5000
LATER = 4_102_444_800
"""The year 2100."""


def segment(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def signed(header: str, claims: str) -> str:
    """A token with these texts as header and payload, signed with the gateway's key."""
    signing_input = f"{segment(header)}.{segment(claims)}"
    signature = urlsafe_b64encode(hmac.digest(KEY, signing_input.encode(), "sha256")).decode().rstrip("=")
    return f"{signing_input}.{signature}"


def saying(claims: dict[str, str], header: dict[str, str] | None = None) -> str:
    """A valid token except for these members, whose values are JSON; an empty one is left out."""
    return signed(*(members(*each) for each in ((HEADER, header or {}), (CLAIMS, claims))))


def members(right: dict[str, Any], changed: dict[str, str]) -> str:
    texts = {name: json.dumps(value) for name, value in right.items()} | changed
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in texts.items() if text) + "}"


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway without servers: a request with a valid token is answered 503."""
    async with harness.gateway(SETTINGS) as client:
        yield client


async def code_of(gateway: httpx.AsyncClient, token: str) -> tuple[int, str]:
    """The response to a read with the token."""
    response = await gateway.get("/notes/1", headers=bearer(token))
    return response.status_code, response.json()["code"]


ANYTHING = [
    "",
    "null",
    "true",
    "[]",
    "{}",
    "[1]",
    '{"a":1}',
    NESTED[:2000],
    '""',
    '"x"',
    "1.5",
    "NaN",
    "Infinity",
    "1e999",
]
WRONG_CLAIMS = {
    "exp": [*ANYTHING, f'"{LATER}"', f"{LATER}.0", "-1", str(2**63), "9" * 400, "9" * 5000, "0", "1"],
    "iat": [*ANYTHING, '"1"', "1.0", "-1", str(2**63), "9" * 400, str(LATER)],
    "nbf": [*ANYTHING[1:], f'"{LATER}"', "-1", "9" * 400, str(LATER)],
    "iss": [*ANYTHING, '["inkwell"]', "1"],
    "aud": [*ANYTHING, '["inkwell"]', "1"],
    "sub": [
        *(*ANYTHING, "1", "5", '"0"', '"-1"', '"+1"', '"01"', '"1_0"', '" 1"', '"1 "', '"1\\n"', '"1.0"', '"1e3"'),
        *('"\\u0661"', '"\\uff11"', f'"{2**63}"', f'"{"9" * 5000}"'),
    ],
    "jti": ["", "null", "true", "[]", "{}", "1"],
    "scope": ["", "null", "true", "[]", "{}", "1", '"everything"', '["notes:read"]', '"notes:read,account"'],
    "credentials_version": [*ANYTHING, '"1"', "1.0", "0", "-1", str(2**31), str(2**63), "9" * 400, "9" * 5000],
}
WRONG_HEADERS = {
    "kid": [*ANYTHING, "1", '["x"]', NESTED],
    "typ": [*ANYTHING, '"JWT"', '"at+JWT "', '["at+jwt"]'],
    "alg": [*ANYTHING, '"none"', '"HS512"', '"hs256"', '["HS256"]'],
    "crit": ['["exp"]', "[]", "1", NESTED],
    "b64": ["false", "0"],
    "x": [NESTED, DEEP],
}


async def test_right_token_is_let_in(gateway: httpx.AsyncClient) -> None:
    for token in (saying({}), saying({"nbf": "1"}), saying({"later": '"a claim of a later version"'})):
        assert await code_of(gateway, token) == (503, "database_unavailable")


@pytest.mark.parametrize(
    ("claim", "value"),
    [(claim, value) for claim, values in WRONG_CLAIMS.items() for value in values],
    ids=[f"{claim} {number}" for claim, values in WRONG_CLAIMS.items() for number in range(len(values))],
)
async def test_token_with_a_wrong_claim_is_invalid(gateway: httpx.AsyncClient, claim: str, value: str) -> None:
    assert await code_of(gateway, saying({claim: value})) == (401, "invalid_token")


@pytest.mark.parametrize(
    ("member", "value"),
    [(member, value) for member, values in WRONG_HEADERS.items() for value in values],
    ids=lambda value: value[:20] or "left out",
)
async def test_token_with_a_wrong_header_is_invalid(gateway: httpx.AsyncClient, member: str, value: str) -> None:
    token = saying({}, {member: value})
    if len(token) > 30_000:  # larger than a request may be
        with pytest.raises(ProblemError, match="invalid_token"):
            AccessTokens(SETTINGS, Clock()).read(token)
    else:
        assert await code_of(gateway, token) == (401, "invalid_token")


@pytest.mark.parametrize(
    "token",
    [
        *(
            signed(header, json.dumps(CLAIMS))
            for header in ("", "null", "[]", "1", '"x"', "{", DEEP[:9000], "[" * 9000)
        ),
        *(
            signed(json.dumps(HEADER), claims)
            for claims in ("", "null", "[]", "1", '"x"', "{", DEEP[:9000], "[" * 9000)
        ),
        *(
            "x",
            ".",
            "..",
            "...",
            "a.b.c",
            "=.=.=",
            "é.é.é",
            "\xff",
            f"{saying({})}=",
            f"{saying({})}.",
            f".{saying({})}",
        ),
        *(f"{saying({})}{junk}" for junk in ("!", "A", "%", "\xa0", "\x85", " x")),
        saying({}).replace(".", ".."),
        saying({})[:-1],
    ],
    ids=lambda token: token[:20],
)
async def test_what_is_no_token_is_invalid(gateway: httpx.AsyncClient, token: str) -> None:
    response = await gateway.get("/notes/1", headers=[(b"authorization", f"Bearer {token}".encode("latin-1"))])

    assert (response.status_code, response.json()["code"]) == (401, "invalid_token")


async def test_writes_and_reads_agree_on_what_is_invalid(
    users_client: httpx.AsyncClient, password_settings: GatewaySettings
) -> None:
    ada = await sign_up(users_client)
    for changed in ({"sub": str(2**63)}, {"credentials_version": 2**31}, {"sub": f"0{ada.id}"}, {"exp": "soon"}):
        token = forged(password_settings, ada.id, **changed)
        for method in ("GET", "POST"):
            response = await users_client.request(method, "/notes", headers=bearer(token))
            assert (response.status_code, response.json()["code"]) == (401, "invalid_token"), changed
