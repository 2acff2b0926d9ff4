"""Credentials that may write but not read: no response to a write contains what they could not read."""

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.accounts import Person, bearer, personal_token, sign_in, sign_up
from tests.support.canaries import NOTE, PASSWORD
from tests.support.harness import decided

BODILESS = {"content-type", "preference-applied"}
CHANGES: list[tuple[str, Any]] = [("PUT", NOTE | {"title": "Pen"}), ("PATCH", {"title": "Pen"}), ("PATCH", {})]


@dataclass(frozen=True)
class Writer:
    """Ada with all scopes, and headers of hers with write scopes only."""

    client: httpx.AsyncClient
    ada: Person
    headers: dict[str, str]

    async def created(self) -> str:
        """The path of a new note of hers."""
        return str((await self.client.post("/notes", json=NOTE, headers=self.ada.headers)).headers["location"])


@pytest.fixture(params=["access token", "personal token", "access token that may change the account"])
async def writer(request: pytest.FixtureRequest, shared_users_client: httpx.AsyncClient) -> Writer:
    client, ada = shared_users_client, await sign_up(shared_users_client)
    if request.param == "personal token":
        return Writer(client, ada, bearer((await personal_token(client, ada, "notes:write"))["token"]))
    scope = "notes:write account" if "account" in request.param else "notes:write"
    return Writer(client, ada, bearer(await sign_in(client, ada.name, scope=scope)))


async def test_note_is_created_and_not_shown(writer: Writer) -> None:
    created = await writer.client.post("/notes", json=NOTE, headers=writer.headers)

    assert (created.status_code, created.content, created.headers["etag"]) == (201, b"", '"1"')
    assert not BODILESS & set(created.headers)
    assert (await writer.client.get(created.headers["location"], headers=writer.headers)).status_code == 403
    read = await writer.client.get(created.headers["location"], headers=writer.ada.headers)
    assert read.json()["title"] == NOTE["title"]


@pytest.mark.parametrize(("method", "body"), CHANGES, ids=str)
async def test_note_is_changed_and_not_shown(writer: Writer, method: str, body: Any) -> None:
    path = await writer.created()

    changed = await writer.client.request(method, path, json=body, headers=writer.headers)

    assert (changed.status_code, changed.content) == (204, b"")
    assert changed.headers["etag"] == (await writer.client.get(path, headers=writer.ada.headers)).headers["etag"]
    assert not BODILESS & set(changed.headers)


async def test_several_writes_are_applied_and_not_shown(writer: Writer) -> None:
    path = await writer.created()
    items = [{"op": "create", **NOTE}, {"op": "patch", "id": int(path.rpartition("/")[2]), "title": "Pen"}]

    changed = await writer.client.post("/notes/batch", json={"items": items}, headers=writer.headers)

    assert (changed.status_code, changed.content) == (204, b"")
    assert len((await writer.client.get("/notes", headers=writer.ada.headers)).json()) == 2


@pytest.mark.parametrize(
    ("preference", "applied"),
    [
        ("return=representation", None),
        ("return=representation, wait=9", "wait=9"),
        ("return=minimal", "return=minimal"),
    ],
)
async def test_representation_that_may_not_be_read_is_not_said_to_be_returned(
    writer: Writer, preference: str, applied: str | None
) -> None:
    headers = writer.headers | {"Prefer": preference}
    created = await writer.client.post("/notes", json=NOTE, headers=headers)
    changed = await writer.client.patch(created.headers["location"], json={"title": "Pen"}, headers=headers)

    assert [(each.status_code, each.content) for each in (created, changed)] == [(201, b""), (204, b"")]
    assert [each.headers.get("preference-applied") for each in (created, changed)] == [applied] * 2


async def test_replay_shows_as_much_as_its_own_credentials_may_read(writer: Writer) -> None:
    key = {"Idempotency-Key": "once"}
    first = await writer.client.post("/notes", json=NOTE, headers=writer.ada.headers | key)
    written_only = await writer.client.post("/notes", json=NOTE, headers=writer.headers | key)
    again = await writer.client.post("/notes", json=NOTE, headers=writer.ada.headers | key)

    assert (written_only.status_code, written_only.content) == (201, b"")
    assert written_only.headers["location"] == first.headers["location"]
    assert [each.headers.get("idempotent-replayed") for each in (first, written_only, again)] == [None, "true", "true"]
    assert again.text == first.text


@pytest.mark.parametrize(("method", "body", "status"), [("POST", NOTE, 201), ("PUT", NOTE, 204), ("PATCH", {}, 204)])
async def test_url_of_a_command_shows_as_much_as_the_caller_may_read(
    writer: Writer, method: str, body: Any, status: int
) -> None:
    path = "/notes" if method == "POST" else await writer.created()
    later = writer.headers | {"Prefer": "respond-async"}
    url = (await writer.client.request(method, path, json=body, headers=later)).headers["location"]
    writer.client.headers = httpx.Headers(writer.headers)
    state = await decided(writer.client, url)
    writer.client.headers = httpx.Headers(writer.ada.headers)
    whole = await decided(writer.client, url)
    writer.client.headers = httpx.Headers()

    assert (state["status"], state["answer"]["status"], state["answer"]["body"]) == ("applied", status, None)
    names = {"ETag", "Location"} if method == "POST" else {"ETag"}
    assert set(state["answer"]["headers"]) == names
    assert whole["answer"]["body"]["description"] == NOTE["description"]
    assert whole["answer"]["headers"] == state["answer"]["headers"] | {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PATCH", "/users/me", {}, 204),
        ("POST", "/auth/tokens", {"name": "script", "scopes": ["notes:read"]}, 201),
    ],
)
async def test_url_of_a_command_on_the_account_shows_nothing_without_the_scope(
    writer: Writer, method: str, path: str, body: Any, status: int
) -> None:
    later = writer.ada.headers | {"Prefer": "respond-async"}
    url = (await writer.client.request(method, path, json=body, headers=later)).headers["location"]
    writer.client.headers = httpx.Headers(writer.headers)
    response = (await decided(writer.client, url))["answer"]
    writer.client.headers = httpx.Headers()

    may_read = "account" in (await scopes_of(writer))
    assert response["status"] == (200 if may_read and status == 204 else status)
    assert bool(response["body"]) == may_read


async def scopes_of(writer: Writer) -> set[str]:
    """The scopes of the writer's token, according to the API."""
    response = await writer.client.get("/users/me", headers=writer.headers)
    return {"account"} if response.is_success else set()


async def test_problem_is_shown_to_a_caller_with_write_scope_alone(writer: Writer) -> None:
    path = await writer.created()
    outdated = await writer.client.put(path, json=NOTE, headers=writer.headers | {"If-Match": '"7"'})
    absent = await writer.client.delete("/notes/999999", headers=writer.headers)

    assert (outdated.status_code, outdated.headers["etag"]) == (412, '"1"')
    assert [response.json()["code"] for response in (outdated, absent)] == ["precondition_failed", "note_not_found"]


async def test_registrant_gets_the_user_at_once_and_at_the_url(shared_users_client: httpx.AsyncClient) -> None:
    user = {"name": "Grace", "password": PASSWORD}
    registered = await shared_users_client.post("/users", json=user)
    accepted = await shared_users_client.post(
        "/users", json=user | {"name": "Hedy"}, headers={"Prefer": "respond-async"}
    )

    assert registered.json()["name"] == "Grace"
    response = (await decided(shared_users_client, accepted.headers["location"]))["answer"]
    assert (response["status"], response["body"]["name"]) == (201, "Hedy")
