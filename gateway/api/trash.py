"""The trash: deleted notes, which can be restored or purged until their text is erased."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import BaseModel, BeforeValidator

from gateway.api.notes import NOTE_PATH, WITHOUT_BODY
from gateway.api.pages import CURSOR_SCHEMA, EncodedCursor, Limit, build_forward_links, build_page, join_notes
from gateway.api.schemas import Note, TrashedNote
from gateway.http.conditional import (
    IF_NONE_MATCH,
    PreconditionHeaders,
    build_etag,
    describe_read,
    respond_unless_modified,
)
from gateway.http.omittable import Omittable
from gateway.http.openapi import describe_response
from gateway.http.operations import Operation, Operations
from gateway.http.parameters import Parameters
from gateway.http.requests import Request
from gateway.http.responses import Response
from gateway.problems import NOTE_NOT_FOUND, OVERLOADED, PRECONDITION_FAILED, ProblemError
from gateway.resources import Gateway
from gateway.settings import GatewaySettings
from gateway.writes.submission import ACCEPTED_RESPONSE, WRITE_HEADERS, WRITE_PROBLEMS, WRITE_READERS
from shared.contracts import Int64, NoteTarget, PurgeNote, RestoreNote, Scope


class TrashCursor(EncodedCursor, frozen=True):
    """A position in the trash: a deletion, by the owner's revision and the note's id."""

    revision: Int64
    id: Int64


LAST = TrashCursor(revision=2**63 - 1, id=2**63 - 1)
"""Follows every deletion."""


class TrashPage(BaseModel, extra="forbid", use_attribute_docstrings=True):
    """The query parameters for a page of the trash."""

    limit: Limit = 100
    """The maximum number of notes to return"""
    cursor: Omittable[Annotated[TrashCursor, BeforeValidator(TrashCursor.parse), CURSOR_SCHEMA]] = None
    """The position of the page, from the `Link` of another page"""


TRASH_PAGE = Parameters(TrashPage, "query")
RESTORE_RESPONSES = {
    200: describe_response("The restored note", "ETag", *WRITE_HEADERS),
    204: describe_response(f"The note has been restored; {WITHOUT_BODY}", "ETag", *WRITE_HEADERS),
} | ACCEPTED_RESPONSE
PURGE_RESPONSES = {204: describe_response("Erased", *WRITE_HEADERS)} | ACCEPTED_RESPONSE

reads: Operations[Gateway] = Operations("notes")
"""The writes depend on the settings; `build_trash_operations` adds them."""


@reads.add(
    "GET",
    "/notes/trash",
    requires=Scope.READ,
    inputs=(TRASH_PAGE, IF_NONE_MATCH),
    returns=list[TrashedNote],
    responses=describe_read("Link"),
    problems=(OVERLOADED,),
)
async def list_trash(gateway: Gateway, request: Request) -> Response:
    """Lists deleted notes, most recently deleted first; `Link` has the URL of the next page."""
    page = request[TRASH_PAGE]
    before = page.cursor or LAST
    found = await gateway.queries.list_trash(request.caller, before.revision, before.id, page.limit + 1)
    listed = found[: page.limit]
    following = TrashCursor(revision=listed[-1].revision, id=listed[-1].id) if len(found) > page.limit else None
    notes = join_notes([each.note for each in listed])
    body, tag, headers = build_page(notes, build_forward_links(request, following))
    return respond_unless_modified(request, Response(body, headers=headers), tag)


@reads.add(
    "GET",
    "/notes/trash/{note_id}",
    requires=Scope.READ,
    inputs=(NOTE_PATH, IF_NONE_MATCH),
    returns=TrashedNote,
    responses=describe_read(),
    problems=(NOTE_NOT_FOUND,),
)
async def get_trashed_note(gateway: Gateway, request: Request) -> Response:
    """Returns a deleted note."""
    found = await gateway.queries.find_trashed(request.caller, request[NOTE_PATH].note_id)
    if found is None:
        raise ProblemError(NOTE_NOT_FOUND)
    note, version = found
    return respond_unless_modified(request, Response(note), build_etag(version))


def build_trash_operations(settings: GatewaySettings) -> Sequence[Operation[Gateway]]:
    """Return the operations on deleted notes."""
    preconditions = PreconditionHeaders(required=settings.require_preconditions)
    writes: Operations[Gateway] = Operations("notes")
    write = partial(
        writes.add,
        requires=Scope.WRITE,
        inputs=(NOTE_PATH, preconditions, *WRITE_READERS),
        problems=(*WRITE_PROBLEMS, NOTE_NOT_FOUND, PRECONDITION_FAILED),
    )

    def read_target(request: Request) -> NoteTarget:
        return NoteTarget(note_id=request[NOTE_PATH].note_id, **dict(request[preconditions]))

    @write(method="POST", path="/notes/{note_id}/restore", returns=Note, responses=RESTORE_RESPONSES)
    async def restore_note(gateway: Gateway, request: Request) -> Response:
        """Restores a deleted note under its id, as a new version."""
        return await gateway.submission.perform(request, RestoreNote, read_target(request))

    @write(method="DELETE", path="/notes/trash/{note_id}", responses=PURGE_RESPONSES)
    async def purge_note(gateway: Gateway, request: Request) -> Response:
        """Erases a deleted note and all its versions for good."""
        return await gateway.submission.perform(request, PurgeNote, read_target(request))

    return [*reads, *writes]
