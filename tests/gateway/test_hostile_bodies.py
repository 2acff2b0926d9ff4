"""Bodies made to block the event loop are rejected before their content is processed."""

import json
import time
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.note_bodies import ITEMS_LIMIT_BYTES, ITEMS_LIMIT_VALUES
from gateway.http.body import VALUES_LIMIT, has_more_values
from tests.support import harness

BUSY_SECONDS = 0.05
"""Of processor time for the whole request, including the client; each of these bodies used to take 40 to 240 ms."""
SMALL = 64 * 1024
JSON = {"Content-Type": "application/json"}


def filled(before: str, piece: Callable[[int], str], after: str, limit: int) -> bytes:
    """JSON with as many of the pieces as fit."""
    pieces, room = list[str](), limit - len(before) - len(after)
    while (room := room - len(piece(len(pieces))) - 1) >= 0:
        pieces.append(piece(len(pieces)))
    return (before + ",".join(pieces) + after).encode()


BATCHES = {
    "unknown members": ('{"items":[],', lambda n: f'"u{n}":1', "}"),
    "empty items": ('{"items":[', lambda _: "{}", "]}"),
    "items that are numbers": ('{"items":[', lambda _: "1", "]}"),
    "versions": ('{"items":[{"op":"delete","id":1,"if_match":[', lambda _: "1", "]}]}"),
    "versions that are texts": ('{"items":[{"op":"delete","id":1,"if_match":[', lambda _: '"1"', "]}]}"),
    "unknown members of an item": ('{"items":[{"op":"create",', lambda n: f'"u{n}":1', "}]}"),
    "one member again and again": ("{", lambda _: '"scopes":1', "}"),
    "items with unknown members": ('{"items":[', lambda _: '{"op":"create","a":1,"b":1,"c":1,"d":1}', "]}"),
    "wrong versions of many items": ('{"items":[', lambda _: '{"op":"delete","id":1,"if_match":[0,0,0,0]}', "]}"),
}
OTHERS = {
    "a note": ("POST", "/notes"),
    "a patch": ("PATCH", "/notes/1"),
    "a replacement": ("PUT", "/notes/1"),
    "a user": ("POST", "/users"),
}


@pytest.fixture(scope="module")
async def gateway_of_users() -> AsyncIterator[httpx.AsyncClient]:
    """As `gateway`, where users sign in."""
    async with harness.gateway(harness.settings_without_servers(auth="password")) as client:
        yield client


async def assert_refused(gateway: httpx.AsyncClient, method: str, path: str, body: bytes, limit: int) -> None:
    """One error about the whole body, found quickly: the best of several tries."""
    busy = []
    for _ in range(3):
        started = time.process_time()
        response = await gateway.request(method, path, content=body, headers=JSON)
        busy.append(time.process_time() - started)
        assert response.status_code == 422
        [error] = response.json()["errors"]
        assert (error["pointer"], error["code"]) == ("/body", "too_long")
        assert str(limit) in error["detail"]
    assert min(busy) < BUSY_SECONDS


@pytest.mark.parametrize("shape", BATCHES)
async def test_batch_with_too_many_values_is_refused_at_once(gateway: httpx.AsyncClient, shape: str) -> None:
    before, piece, after = BATCHES[shape]
    body = filled(before, piece, after, ITEMS_LIMIT_BYTES)

    await assert_refused(gateway, "POST", "/notes/batch", body, ITEMS_LIMIT_VALUES)


@pytest.mark.parametrize("shape", OTHERS)
async def test_body_with_too_many_values_is_refused_at_once(
    gateway: httpx.AsyncClient, gateway_of_users: httpx.AsyncClient, shape: str
) -> None:
    method, path = OTHERS[shape]
    body = filled("{", lambda number: f'"{number}":1', "}", SMALL)

    await assert_refused(gateway_of_users if path == "/users" else gateway, method, path, body, VALUES_LIMIT)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a",\\{[é'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a",\\'), inner),
)


def strings_and_commas(value: object) -> int:
    """The count that `has_more_values` makes, from the parsed value."""
    if isinstance(value, str):
        return 1
    if isinstance(value, list):
        return max(0, len(value) - 1) + sum(map(strings_and_commas, value))
    if isinstance(value, dict):
        return max(0, len(value) - 1) + len(value) + sum(map(strings_and_commas, value.values()))
    return 0


@given(VALUES)
def test_values_are_counted_whatever_is_in_the_strings(value: object) -> None:
    count = strings_and_commas(value)
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert not has_more_values(text.encode(), count)
        assert count == 0 or has_more_values(text.encode(), count - 1)
