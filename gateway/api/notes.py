"""Notes: reads query Postgres, writes are published as commands."""

import json
from functools import partial
from typing import Any

from pydantic import BaseModel

from gateway.api.note_bodies import NoteBodies
from gateway.api.pages import (
    NotesPage,
    SearchPage,
    arrange_notes,
    build_list_links,
    build_page,
    build_search_links,
    join_notes,
)
from gateway.api.schemas import Matches, Note
from gateway.http.conditional import (
    IF_NONE_MATCH,
    PreconditionHeaders,
    build_etag,
    describe_read,
    respond_unless_modified,
)
from gateway.http.openapi import describe_response
from gateway.http.operations import Operation, Operations
from gateway.http.parameters import Integer64, Parameters
from gateway.http.requests import Request
from gateway.http.responses import Response
from gateway.problems import (
    NOTE_NOT_FOUND,
    OVERLOADED,
    PRECONDITION_FAILED,
    PRECONDITION_REQUIRED,
    SEARCH_TIMEOUT,
    ProblemError,
)
from gateway.reads.kept_pages import KeptPage
from gateway.resources import Gateway
from gateway.settings import GatewaySettings
from gateway.writes.submission import ACCEPTED_RESPONSE, DELETE_RESPONSES, WRITE_HEADERS, WRITE_PROBLEMS, WRITE_READERS
from shared.contracts import (
    ChangeNotes,
    CreateNote,
    DeleteNote,
    NotePatch,
    NoteReplacement,
    NoteTarget,
    PatchNote,
    ReplaceNote,
    Scope,
    WrittenItems,
)


class _NotePath(BaseModel):
    note_id: Integer64


NOTE_PATH = Parameters(_NotePath, "path")
NOTES_PAGE = Parameters(NotesPage, "query")
SEARCH_PAGE = Parameters(SearchPage, "query")
WITHOUT_BODY = "no body with `return=minimal`, or without the scope `notes:read`"
CREATE_RESPONSES = {
    201: describe_response(f"The new note; {WITHOUT_BODY}", "Location", "ETag", *WRITE_HEADERS)
} | ACCEPTED_RESPONSE
CHANGE_RESPONSES = {
    200: describe_response("The updated note", "ETag", *WRITE_HEADERS),
    204: describe_response(f"The note has been updated; {WITHOUT_BODY}", "ETag", *WRITE_HEADERS),
} | ACCEPTED_RESPONSE
CHANGE_PROBLEMS = (*WRITE_PROBLEMS, NOTE_NOT_FOUND, PRECONDITION_FAILED)


reads: Operations[Gateway] = Operations("notes")
"""The writes depend on the settings; `build_note_operations` adds them."""


@reads.add(
    "GET",
    "/notes",
    requires=Scope.READ,
    inputs=(NOTES_PAGE, IF_NONE_MATCH),
    returns=list[Note],
    responses=describe_read("Link", "X-Total-Count"),
    problems=(OVERLOADED,),
)
async def list_notes(gateway: Gateway, request: Request) -> Response:
    """Lists notes, by id or in another order; `Link` has the URL of the next page."""
    page = request[NOTES_PAGE]
    key = (request.caller.owner, request.url_path, request.query)
    kept = gateway.kept_pages.find(key)
    deadline = gateway.queries.compute_deadline()
    if not kept or kept.revision != await gateway.queries.get_revision(request.caller, deadline):
        listed = await gateway.queries.list_notes(request.caller, page.shape, deadline, **page.arguments)
        notes = arrange_notes(page, listed)
        links = build_list_links(request, page, listed)
        body, tag, headers = build_page(join_notes(notes), links, listed.total)
        kept = KeptPage(listed.revision, body, tag, headers)
        gateway.kept_pages.keep(key, kept)
    return respond_unless_modified(request, Response(kept.body, headers=dict(kept.headers)), kept.tag)


@reads.add(
    "GET",
    "/notes/search",
    requires=Scope.READ,
    inputs=(SEARCH_PAGE, IF_NONE_MATCH),
    returns=Matches,
    responses=describe_read("Link"),
    problems=(OVERLOADED, SEARCH_TIMEOUT),
)
async def search_notes(gateway: Gateway, request: Request) -> Response:
    """Finds notes by their words, the best match first, then by their text; if there are none, similar notes."""
    page = request[SEARCH_PAGE]
    found = await gateway.queries.search_notes(request.caller, page.terms, page.skip, page.limit)
    limited = json.dumps(found.is_limited)
    notes = join_notes(found.notes)
    # By hand, because Postgres has printed the notes already.
    text = f'{{"matched":"{found.matched}","limited":{limited},"total":{found.total},"notes":{notes}}}'
    body, tag, headers = build_page(text, build_search_links(request, page, found.total))
    return respond_unless_modified(request, Response(body, headers=headers), tag)


@reads.add(
    "GET",
    "/notes/{note_id}",
    requires=Scope.READ,
    inputs=(NOTE_PATH, IF_NONE_MATCH),
    returns=Note,
    responses=describe_read(),
    problems=(NOTE_NOT_FOUND,),
)
async def get_note(gateway: Gateway, request: Request) -> Response:
    """Returns a note."""
    found = await gateway.queries.find_note(request.caller, request[NOTE_PATH].note_id)
    if found is None:
        raise ProblemError(NOTE_NOT_FOUND)
    note, version = found
    return respond_unless_modified(request, Response(note), build_etag(version))


def build_note_operations(settings: GatewaySettings) -> list[Operation[Gateway]]:
    """Return the operations on notes."""
    bodies = NoteBodies(settings)
    preconditions = PreconditionHeaders(required=settings.require_preconditions)
    return [*reads, *_build_creations(bodies, preconditions), *_build_changes(bodies, preconditions)]


def _build_creations(bodies: NoteBodies, preconditions: PreconditionHeaders) -> Operations[Gateway]:
    creations: Operations[Gateway] = Operations("notes")

    @creations.add(
        "POST",
        "/notes",
        requires=Scope.WRITE,
        inputs=(bodies.note, *WRITE_READERS),
        returns=Note,
        responses=CREATE_RESPONSES,
        problems=WRITE_PROBLEMS,
    )
    async def create_note(gateway: Gateway, request: Request) -> Response:
        """Creates a note."""
        return await gateway.submission.perform(request, CreateNote, request[bodies.note])

    @creations.add(
        "POST",
        "/notes/batch",
        requires=Scope.WRITE,
        inputs=(bodies.items, *WRITE_READERS),
        returns=WrittenItems,
        responses={
            200: describe_response("The result of each write", *WRITE_HEADERS),
            204: describe_response(f"All writes have been applied; {WITHOUT_BODY}", *WRITE_HEADERS),
        }
        | ACCEPTED_RESPONSE,
        problems=(*CHANGE_PROBLEMS, PRECONDITION_REQUIRED),
    )
    async def change_notes(gateway: Gateway, request: Request) -> Response:
        """Creates, changes and deletes up to 1,000 notes atomically."""
        items = request[bodies.items].to_note_items(preconditions)
        return await gateway.submission.perform(request, ChangeNotes, items)

    return creations


def _build_changes(bodies: NoteBodies, preconditions: PreconditionHeaders) -> Operations[Gateway]:
    changes: Operations[Gateway] = Operations("notes")
    change = partial(changes.add, path="/notes/{note_id}", requires=Scope.WRITE, problems=CHANGE_PROBLEMS)
    targeted = (NOTE_PATH, preconditions)

    def read_target(request: Request) -> dict[str, Any]:
        return {"note_id": request[NOTE_PATH].note_id, **dict(request[preconditions])}

    @change(method="PUT", inputs=(*targeted, bodies.note, *WRITE_READERS), returns=Note, responses=CHANGE_RESPONSES)
    async def replace_note(gateway: Gateway, request: Request) -> Response:
        """Replaces a note's title and description; `created_date` stays the same."""
        replacement = NoteReplacement(**read_target(request), **dict(request[bodies.note]))
        return await gateway.submission.perform(request, ReplaceNote, replacement)

    @change(method="PATCH", inputs=(*targeted, bodies.patch, *WRITE_READERS), returns=Note, responses=CHANGE_RESPONSES)
    async def patch_note(gateway: Gateway, request: Request) -> Response:
        """Changes the members of a note that are in the body (RFC 7396)."""
        patch = NotePatch(**read_target(request), **dict(request[bodies.patch]))
        return await gateway.submission.perform(request, PatchNote, patch)

    @change(method="DELETE", inputs=(*targeted, *WRITE_READERS), responses=DELETE_RESPONSES)
    async def delete_note(gateway: Gateway, request: Request) -> Response:
        """Deletes a note."""
        return await gateway.submission.perform(request, DeleteNote, NoteTarget(**read_target(request)))

    return changes
