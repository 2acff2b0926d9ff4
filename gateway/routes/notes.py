"""Notes: reads come straight from Postgres, writes leave as commands."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request, Response

from gateway.conditions import Cached, Conditions, etag, not_modified
from gateway.dependencies import caller_of, gateway_of
from gateway.errors import ProblemError
from gateway.idempotency import IDEMPOTENCY_KEY
from gateway.note_bodies import NoteBodies
from gateway.openapi import (
    CHANGE_NOTES,
    CREATE_NOTE,
    DELETE_NOTE,
    GET_NOTE,
    LIST_NOTES,
    PATCH_NOTE,
    REPLACE_NOTE,
    SEARCH_NOTES,
)
from gateway.pages import joined, link_header, links_of_list, links_of_search
from gateway.preferences import PREFER
from gateway.requests import NOTE_PATH, NOTES_PAGE, SEARCH_PAGE, PlainRoute, described_by
from gateway.rules import MAY_READ, MAY_WRITE
from gateway.schemas import Matches, Note
from gateway.writes import perform
from shared.contracts import (
    ChangeNotes,
    CreateNote,
    DeleteNote,
    NotePatch,
    NoteReplacement,
    NoteTarget,
    PatchNote,
    ReplaceNote,
    WrittenItems,
)

JSON = "application/json"
reads = APIRouter(prefix="/notes", tags=["notes"], route_class=PlainRoute)


@reads.get(
    "", response_model=list[Note], responses=LIST_NOTES, openapi_extra=described_by(MAY_READ, NOTES_PAGE, Cached())
)
async def list_notes(request: Request) -> Response:
    """Notes in the order of their ids or another; `Link` leads to the next page, however many there are."""
    page = NOTES_PAGE.of(request)
    listed = await gateway_of(request).queries.list_notes(caller_of(request), page.shape, **page.arguments)
    notes, links = links_of_list(request, page, listed)
    return page_of(request, joined(notes), links, listed.total)


@reads.get(
    "/search",
    response_model=Matches,
    responses=SEARCH_NOTES,
    openapi_extra=described_by(MAY_READ, SEARCH_PAGE, Cached()),
)
async def search_notes(request: Request) -> Response:
    """Notes with the words in their titles or descriptions, the best first."""
    page = SEARCH_PAGE.of(request)
    found = await gateway_of(request).queries.search_notes(caller_of(request), page.q, page.skip, page.limit)
    matched = {"matched": "similar_titles" if found.is_similar else "words", "limited": found.is_limited}
    members = json.dumps(matched | {"total": found.total}, separators=(",", ":"))
    links = links_of_search(request, page, found.total)
    return page_of(request, f'{members[:-1]},"notes":{joined(found.notes)}}}', links)


@reads.get(
    "/{note_id}", response_model=Note, responses=GET_NOTE, openapi_extra=described_by(MAY_READ, NOTE_PATH, Cached())
)
async def get_note(request: Request) -> Response:
    """One note."""
    found = await gateway_of(request).queries.find_note(caller_of(request), NOTE_PATH.of(request).note_id)
    if found is None:
        raise ProblemError(404, "note_not_found", "Note not found")
    note, version = found
    return cacheable(request, note, etag(version))


def page_of(request: Request, text: str, links: dict[str, str], total: int | None = None) -> Response:
    """A page with its links and, if it was asked for, how many notes there are on all pages."""
    headers = {"Link": link_header(links)} | ({} if total is None else {"X-Total-Count": str(total)})
    digest = hashlib.blake2b(f"{text}{headers}".encode(), digest_size=12).hexdigest()
    return cacheable(request, text, f'"{digest}"', headers)


def cacheable(request: Request, text: str, tag: str, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """The text with its entity tag, or 304 where the client has it."""
    headers = {**headers, "ETag": tag}
    if not_modified(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(text, headers=headers, media_type=JSON)


def writes_router(bodies: NoteBodies, conditions: Conditions) -> APIRouter:
    """The writes, whose bodies and conditions are read so."""
    router = APIRouter(prefix="/notes", tags=["notes"], route_class=PlainRoute)
    creating = described_by(MAY_WRITE, PREFER, IDEMPOTENCY_KEY, bodies.note)
    changing = described_by(MAY_WRITE, PREFER, IDEMPOTENCY_KEY, bodies.items)
    deleting = described_by(MAY_WRITE, NOTE_PATH, conditions, PREFER, IDEMPOTENCY_KEY)
    replacing, patching = deleting | bodies.note.openapi, deleting | bodies.patch.openapi

    @router.post("", status_code=201, response_model=Note, responses=CREATE_NOTE, openapi_extra=creating)
    async def create_note(request: Request) -> Response:
        """Adds a note."""
        return await perform(request, CreateNote, await bodies.note.of(request))

    @router.post("/batch", response_model=WrittenItems, responses=CHANGE_NOTES, openapi_extra=changing)
    async def change_notes(request: Request) -> Response:
        """Adds, changes and removes up to 1,000 notes: all of them, or none."""
        items = await bodies.items.of(request)
        return await perform(request, ChangeNotes, items.written(conditions))

    @router.put("/{note_id}", response_model=Note, responses=REPLACE_NOTE, openapi_extra=replacing)
    async def replace_note(request: Request) -> Response:
        """Gives a note a new title and description; `created_date` stays."""
        target, note = target_of(request), await bodies.note.of(request)
        return await perform(request, ReplaceNote, NoteReplacement(**target, **dict(note)))

    @router.patch("/{note_id}", response_model=Note, responses=PATCH_NOTE, openapi_extra=patching)
    async def patch_note(request: Request) -> Response:
        """Changes the members of a note that the body has (RFC 7396)."""
        target, patch = target_of(request), await bodies.patch.of(request)
        return await perform(request, PatchNote, NotePatch(**target, **dict(patch)))

    @router.delete("/{note_id}", status_code=204, responses=DELETE_NOTE, openapi_extra=deleting)
    async def delete_note(request: Request) -> Response:
        """Removes a note."""
        return await perform(request, DeleteNote, NoteTarget(**target_of(request)))

    def target_of(request: Request) -> dict[str, Any]:
        return {"note_id": NOTE_PATH.of(request).note_id, **dict(conditions.of(request))}

    return router
