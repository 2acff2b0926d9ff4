"""A key repeated while the broker is down: a known outcome is answered, and a 503 refers only to its own request."""

import httpx

from tests.support.canaries import NOTE
from tests.support.harness import eventually
from tests.support.stack import Stack

KEY = {"Idempotency-Key": '"the key"', "Prefer": "wait=25"}


async def test_key_that_is_decided_is_answered_while_the_broker_is_away(stack: Stack) -> None:
    first = await stack.client.post("/notes", json=NOTE, headers=KEY)
    async with stack.second_gateway() as second:
        await stack.links["gateway-broker"].cut()
        responses = [await client.post("/notes", json=NOTE, headers=KEY) for client in (stack.client, second)]
        await stack.links["gateway-broker"].start()

    assert {(response.status_code, response.text) for response in responses} == {(201, first.text)}
    assert all(response.headers["idempotent-replayed"] == "true" for response in responses)


async def test_key_that_may_be_under_way_is_not_said_to_have_no_effect(stack: Stack) -> None:
    await stack.worker.stop()
    accepted = await stack.client.post("/notes", json=NOTE, headers=KEY | {"Prefer": "respond-async"})
    await stack.links["gateway-broker"].cut()
    refused, keyless = [await stack.client.post("/notes", json=NOTE, headers=key) for key in (KEY, {})]
    await stack.links["gateway-broker"].start()
    await stack.worker.start()
    repeated = await eventually(lambda: written(stack))

    assert (accepted.status_code, refused.status_code, refused.json()["code"]) == (202, 503, "not_accepted")
    assert "this request has no effect" in refused.json()["detail"]
    assert "with the same key, never as a new write" in refused.json()["detail"]
    assert "key" not in keyless.json()["detail"]
    assert repeated.headers["idempotent-replayed"] == "true"
    assert await stack.value("select count(*) from notes") == 1


async def written(stack: Stack) -> httpx.Response | None:
    response = await stack.client.post("/notes", json=NOTE, headers=KEY)
    return response if response.status_code == 201 else None
