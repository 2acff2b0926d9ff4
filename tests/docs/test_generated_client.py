"""docs/openapi.json is what a gateway serves, and a client generated from it works."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from dev.openapi import PATH, document
from tests.support.canaries import NOTE, PASSWORD

PACKAGE = "generated_client"


def test_document_is_what_a_gateway_serves() -> None:
    assert PATH.read_text() == document(), "run `make generate`"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the generated package, which is importable."""
    folder = tmp_path_factory.mktemp("generated")
    program, where = Path(sys.executable).parent / "openapi-python-client", folder / PACKAGE
    quiet = folder / "config.yaml"
    quiet.write_text("post_hooks: []\ncontent_type_overrides: {application/x-ndjson: application/octet-stream}\n")
    arguments = ["--path", PATH, "--output-path", where, "--meta", "none", "--config", quiet, "--fail-on-warning"]
    subprocess.run([str(program), "generate", *map(str, arguments)], check=True, capture_output=True, timeout=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield PACKAGE


@pytest.fixture
async def client(package: str, users_client: httpx.AsyncClient) -> AsyncIterator[Any]:
    """A generated client of a running gateway, not signed in."""
    url = str(users_client.base_url)
    async with import_module(package).Client(base_url=url, raise_on_unexpected_status=True) as client:
        yield client


async def call(name: str, **arguments: Any) -> Any:
    """An operation's response, as the generated client parses it."""
    response = await import_module(f"{PACKAGE}.api.{name}").asyncio_detailed(**arguments)
    return response.parsed


def model(kind: str, /, **members: Any) -> Any:
    return getattr(import_module(f"{PACKAGE}.models"), kind)(**members)


async def test_generated_client_writes_reads_and_searches(client: Any) -> None:
    user = await call("users.register_user", client=client, body=model("NewUser", name="Ada", password=PASSWORD))
    login = model("LoginForm", username="Ada", password=PASSWORD)
    token = await call("tokens.issue_token", client=client, body=login)
    assert user.name == "Ada"

    signed_in = import_module(PACKAGE).AuthenticatedClient(base_url=client._base_url, token=token.access_token)
    async with signed_in as ada:
        note = await call("notes.create_note", client=ada, body=model("NoteIn", **NOTE))
        assert (note.title, note.version) == (NOTE["title"], 1)
        patch = model("PatchItemIn", op="patch", id=note.id, title="Blue ink", if_match=[1])
        create = model("CreateItemIn", op="create", title="Pen", description="")
        both = await call("notes.change_notes", client=ada, body=model("NoteItemsIn", items=[patch, create]))
        assert [(item.status, item.version) for item in both.items] == [(200, 2), (201, 1)]
        sort = model("ListNotesSort", value="-title")
        listed = await call("notes.list_notes", client=ada, sort=sort, limit=10)
        assert [each.title for each in listed] == ["Pen", "Blue ink"]
        found = await call("notes.search_notes", client=ada, q="blue")
        assert [each.id for each in found.notes] == [note.id]
        versions = await call("notes.list_versions", client=ada, note_id=note.id)
        assert [(each.title, each.version) for each in versions] == [("Blue ink", 2), (NOTE["title"], 1)]
        await call("notes.delete_note", client=ada, note_id=note.id)
        trash = await call("notes.list_trash", client=ada)
        assert [(each.id, each.deleted_date > each.created_date) for each in trash] == [(note.id, True)]
        restored = await call("notes.restore_note", client=ada, note_id=note.id)
        assert (restored.title, restored.version) == ("Blue ink", 3)
        await call("notes.delete_note", client=ada, note_id=note.id)
        assert await call("notes.purge_note", client=ada, note_id=note.id) is None
        gone = await call("notes.get_trashed_note", client=ada, note_id=note.id)
        assert (gone.status, gone.code) == (404, "note_not_found")


async def test_generated_client_shows_the_problem(client: Any) -> None:
    problem = await call("notes.get_note", client=client, note_id=1)

    assert (problem.status, problem.code) == (401, "not_authenticated")
