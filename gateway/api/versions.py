"""The history of a note: its versions, for as long as outcomes are kept."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from gateway.api.notes import NOTE_PATH
from gateway.api.pages import CURSOR_SCHEMA, EncodedCursor, Limit, build_forward_links, build_page, join_notes
from gateway.api.schemas import Note
from gateway.http.conditional import IF_NONE_MATCH, build_etag, describe_read, respond_unless_modified
from gateway.http.omittable import Omittable
from gateway.http.operations import Operations
from gateway.http.parameters import INTEGER, Integer64, Parameters
from gateway.http.requests import Request
from gateway.http.responses import Response
from gateway.problems import NOTE_NOT_FOUND, OVERLOADED, VERSION_NOT_FOUND, ProblemError
from gateway.resources import Gateway
from shared.contracts import MAX_VERSION, Scope


class VersionsCursor(EncodedCursor, frozen=True):
    """A position in a note's history: before this version."""

    before: Annotated[int, Field(ge=1, le=MAX_VERSION + 1)] = MAX_VERSION + 1


class VersionsPage(BaseModel, extra="forbid", use_attribute_docstrings=True):
    """The query parameters for a page of a note's history."""

    limit: Limit = 100
    """The maximum number of versions to return"""
    cursor: Omittable[Annotated[VersionsCursor, BeforeValidator(VersionsCursor.parse), CURSOR_SCHEMA]] = None
    """The position of the page, from the `Link` of another page"""


class _VersionPath(BaseModel):
    note_id: Integer64
    version: Annotated[int, Field(ge=1, le=MAX_VERSION), INTEGER]


VERSIONS_PAGE = Parameters(VersionsPage, "query")
VERSION_PATH = Parameters(_VersionPath, "path")

operations: Operations[Gateway] = Operations("notes")


@operations.add(
    "GET",
    "/notes/{note_id}/versions",
    requires=Scope.READ,
    inputs=(NOTE_PATH, VERSIONS_PAGE, IF_NONE_MATCH),
    returns=list[Note],
    responses=describe_read("Link"),
    problems=(NOTE_NOT_FOUND, OVERLOADED),
)
async def list_versions(gateway: Gateway, request: Request) -> Response:
    """Lists the versions of a note that are kept, newest first; `Link` has the URL of the next page."""
    page = request[VERSIONS_PAGE]
    before = page.cursor or VersionsCursor()
    note_id = request[NOTE_PATH].note_id
    found = await gateway.queries.list_versions(request.caller, note_id, before.before, page.limit + 1)
    if found is None:
        raise ProblemError(NOTE_NOT_FOUND)
    listed = found[: page.limit]
    following = VersionsCursor(before=listed[-1][1]) if len(found) > page.limit else None
    notes = join_notes([note for note, _ in listed])
    body, tag, headers = build_page(notes, build_forward_links(request, following))
    return respond_unless_modified(request, Response(body, headers=headers), tag)


@operations.add(
    "GET",
    "/notes/{note_id}/versions/{version}",
    requires=Scope.READ,
    inputs=(VERSION_PATH, IF_NONE_MATCH),
    returns=Note,
    responses=describe_read(),
    problems=(NOTE_NOT_FOUND, VERSION_NOT_FOUND),
)
async def get_version(gateway: Gateway, request: Request) -> Response:
    """Returns a note as it was in this version."""
    path = request[VERSION_PATH]
    is_found, note = await gateway.queries.find_version(request.caller, path.note_id, path.version)
    if note is None:
        raise ProblemError(VERSION_NOT_FOUND if is_found else NOTE_NOT_FOUND)
    return respond_unless_modified(request, Response(note), build_etag(path.version))
