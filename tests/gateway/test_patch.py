"""PATCH: a JSON merge patch (RFC 7396) changes only the members that it contains."""

import json
from typing import Any

import httpx
import pytest

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import decided
from worker.settings import WorkerSettings

MERGE_PATCH = "application/merge-patch+json"
PATCHES: dict[str, tuple[bytes, dict[str, str]]] = {
    "title": (b'{"title": "Pen"}', {"title": "Pen"}),
    "description": (b'{"description": "Two"}', {"description": "Two"}),
    "both": (b'{"title": "Pen", "description": "Two"}', {"title": "Pen", "description": "Two"}),
    "empty texts": (b'{"title": "", "description": ""}', {"title": "", "description": ""}),
    "nothing": (b"{}", {}),
    "the same": (b'{"title": "Ink"}', {}),
    "a member twice": (b'{"title": "Pencil", "title": "Pen"}', {"title": "Pen"}),
    "longest": (json.dumps({"title": "🖋" * 50}).encode(), {"title": "🖋" * 50}),
}
INVALID: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "null": (b"null", [("/body", "wrong_type")]),
    "list": (b"[]", [("/body", "wrong_type")]),
    "list of operations": (b'[{"op": "remove", "path": "/title"}]', [("/body", "wrong_type")]),
    "string": (b'"title"', [("/body", "wrong_type")]),
    "title removed": (b'{"title": null}', [("/body/title", "wrong_type")]),
    "title and description removed": (
        b'{"title": null, "description": null}',
        [("/body/title", "wrong_type"), ("/body/description", "wrong_type")],
    ),
    "nested title": (b'{"title": {"a": "b"}}', [("/body/title", "wrong_type")]),
    "list as title": (b'{"title": ["Ink"]}', [("/body/title", "wrong_type")]),
    "unknown member": (b'{"colour": "blue"}', [("/body/colour", "unknown_field")]),
    "unknown member removed": (b'{"colour": null}', [("/body/colour", "unknown_field")]),
    "version": (b'{"version": 7}', [("/body/version", "unknown_field")]),
    "note id": (b'{"note_id": 2}', [("/body/note_id", "unknown_field")]),
    "condition": (b'{"if_match": [1]}', [("/body/if_match", "unknown_field")]),
    "twice, at last null": (b'{"title": "Pen", "title": null}', [("/body/title", "wrong_type")]),
    "long title": (json.dumps({"title": "a" * 51}).encode(), [("/body/title", "too_long")]),
    "long description": (json.dumps({"description": "a" * 201}).encode(), [("/body/description", "too_long")]),
    "U+0000": (b'{"title": "\\u0000"}', [("/body/title", "invalid_value")]),
}


@pytest.mark.parametrize("media_type", [MERGE_PATCH, "application/json", f"{MERGE_PATCH}; charset=UTF-8"])
@pytest.mark.parametrize(("patch", "changes"), PATCHES.values(), ids=PATCHES.keys())
async def test_patch_changes_what_it_has_and_nothing_else(
    shared_client: httpx.AsyncClient, path: str, media_type: str, patch: bytes, changes: dict[str, str]
) -> None:
    before = (await shared_client.get(path)).json()

    patched = await shared_client.patch(path, content=patch, headers={"Content-Type": media_type})

    version = 2 if changes else 1
    assert (patched.status_code, patched.headers["etag"]) == (200, f'"{version}"')
    updated = {"version": version, "updated_date": patched.json()["updated_date"]}
    assert patched.json() == before | changes | updated
    assert (updated["updated_date"] > before["updated_date"]) == bool(changes)
    assert (await shared_client.get(path)).text == patched.text


@pytest.mark.parametrize(("patch", "errors"), INVALID.values(), ids=INVALID.keys())
async def test_invalid_patch_is_refused_and_has_no_effect(
    shared_client: httpx.AsyncClient, path: str, patch: bytes, errors: list[tuple[str, str]]
) -> None:
    refused = await shared_client.patch(path, content=patch, headers={"Content-Type": MERGE_PATCH})

    assert (refused.status_code, refused.json()["code"]) == (422, "validation_failed")
    assert [(error["pointer"], error["code"]) for error in refused.json()["errors"]] == errors
    assert (await shared_client.get(path)).json()["version"] == 1


@pytest.mark.parametrize("patch", [b"", b"{", b"{'title': 'Pen'}", b'{"title": "\\ud800"}', b"[" * 60_000])
async def test_patch_that_is_not_json_is_refused(shared_client: httpx.AsyncClient, path: str, patch: bytes) -> None:
    refused = await shared_client.patch(path, content=patch, headers={"Content-Type": MERGE_PATCH})

    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", "application/json-patch+json", f"{MERGE_PATCH}; charset=latin-1"]
)
async def test_patch_of_another_media_type_is_refused_with_those_there_are(
    shared_client: httpx.AsyncClient, path: str, media_type: str
) -> None:
    refused = await shared_client.patch(path, content=b"{}", headers={"Content-Type": media_type})

    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
    assert refused.headers["accept-patch"] == "application/merge-patch+json, application/json"


async def test_merge_patch_replaces_no_note(shared_client: httpx.AsyncClient, path: str) -> None:
    refused = await shared_client.put(path, json=NOTE, headers={"Content-Type": MERGE_PATCH})

    assert refused.status_code == 415
    assert "accept-patch" not in refused.headers


@pytest.mark.parametrize("note_id", ["999999", "0", "9223372036854775807"])
async def test_patch_of_a_note_that_does_not_exist_is_not_found(shared_client: httpx.AsyncClient, note_id: str) -> None:
    assert (await shared_client.patch(f"/notes/{note_id}", json={"title": "Pen"})).status_code == 404


async def test_patches_in_one_batch_add_up(gateway_settings: GatewaySettings, worker_settings: WorkerSettings) -> None:
    patches: list[dict[str, Any]] = [{"title": "Pen"}, {"description": "Two"}, {}, {"description": "Three"}]
    async with harness.gateway(gateway_settings) as client:
        async with harness.worker(worker_settings):
            path = (await client.post("/notes", json=NOTE)).headers["location"]
        responses = [await client.patch(path, json=patch, headers={"Prefer": "respond-async"}) for patch in patches]
        async with harness.worker(worker_settings):
            bodies = [(await decided(client, each.headers["location"]))["answer"]["body"] for each in responses]

    assert [(body["title"], body["description"], body["version"]) for body in bodies] == [
        ("Pen", "Buy a bottle", 2),
        ("Pen", "Two", 3),
        ("Pen", "Two", 3),
        ("Pen", "Three", 4),
    ]
