"""Notes: reads come straight from Postgres, writes leave as commands."""

from fastapi import APIRouter, Request, Response

from gateway.dependencies import gateway_of, owner_of
from gateway.errors import Problem, ProblemError, Responses
from gateway.requests import NOTE_PATH, PAGE, NoteBody, PlainRoute, described_by
from gateway.schemas import CommandState, Note
from gateway.writes import perform
from shared.contracts import CreateNote, DeleteNote, NoteReplacement, NoteTarget, ReplaceNote

JSON = "application/json"
NOT_FOUND: Responses = {404: {"model": Problem, "description": "Note not found"}}
READ: Responses = {503: {"model": Problem, "description": "The database does not answer; try again"}}
WRITE: Responses = {
    202: {"model": CommandState, "description": "Accepted; ask its Location what became of it"},
    500: {"model": Problem, "description": "Accepted, no effect, kept for an operator"},
    503: {"model": Problem, "description": "Not accepted: certainly no effect"},
    504: {"model": Problem, "description": "Unconfirmed: ask the command's URL"},
}
BODY: Responses = {
    status: {"model": Problem, "description": description}
    for status, description in {400: "Not JSON", 413: "Too large", 415: "Not declared as JSON"}.items()
}


def notes_router(note_body: NoteBody) -> APIRouter:
    """The routes of `/notes`; request bodies are read by `note_body`."""
    router = APIRouter(prefix="/notes", tags=["notes"], route_class=PlainRoute)
    replacing = described_by(NOTE_PATH, note_body)

    @router.post(
        "", status_code=201, response_model=Note, responses=WRITE | BODY, openapi_extra=described_by(note_body)
    )
    async def create_note(request: Request) -> Response:
        """Adds a note."""
        return await perform(request, CreateNote, await note_body.of(request))

    @router.get("", response_model=list[Note], responses=READ, openapi_extra=described_by(PAGE))
    async def list_notes(request: Request) -> Response:
        """Notes in the order of their ids."""
        page = PAGE.of(request)
        notes = await gateway_of(request).queries.list_notes(owner_of(request), page.skip, page.limit)
        return Response(notes, media_type=JSON)

    @router.get("/{note_id}", response_model=Note, responses=READ | NOT_FOUND, openapi_extra=described_by(NOTE_PATH))
    async def get_note(request: Request) -> Response:
        """One note."""
        note = await gateway_of(request).queries.find_note(owner_of(request), NOTE_PATH.of(request).note_id)
        if note is None:
            raise ProblemError(404, "note_not_found", "Note not found")
        return Response(note, media_type=JSON)

    @router.put("/{note_id}", response_model=Note, responses=WRITE | NOT_FOUND | BODY, openapi_extra=replacing)
    async def replace_note(request: Request) -> Response:
        """Gives a note a new title and description; `created_date` stays."""
        note_id, note = NOTE_PATH.of(request).note_id, await note_body.of(request)
        data = NoteReplacement(note_id=note_id, title=note.title, description=note.description)
        return await perform(request, ReplaceNote, data)

    @router.delete("/{note_id}", status_code=204, responses=WRITE | NOT_FOUND, openapi_extra=described_by(NOTE_PATH))
    async def delete_note(request: Request) -> Response:
        """Removes a note."""
        return await perform(request, DeleteNote, NoteTarget(note_id=NOTE_PATH.of(request).note_id))

    return router
