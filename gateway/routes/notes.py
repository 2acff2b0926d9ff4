"""Notes: reads come straight from Postgres, writes leave as commands."""

from fastapi import APIRouter, Depends, Response

from gateway.dependencies import CurrentGateway, CurrentOwner
from gateway.errors import Problem, ProblemError, Responses
from gateway.schemas import CommandState, Limit, Note, NoteBody, NoteId, Skip
from gateway.writes import new_command, perform
from shared.contracts import CreateNote, DeleteNote, NoteReplacement, NoteTarget, NoteText, ReplaceNote

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
    router = APIRouter(prefix="/notes", tags=["notes"])
    body = Depends(note_body)

    @router.post("", status_code=201, response_model=Note, responses=WRITE | BODY, openapi_extra=note_body.openapi)
    async def create_note(gateway: CurrentGateway, owner: CurrentOwner, note: NoteText = body) -> Response:
        """Adds a note."""
        return await perform(gateway, new_command(gateway, owner, CreateNote, note))

    @router.get("", response_model=list[Note], responses=READ)
    async def list_notes(gateway: CurrentGateway, owner: CurrentOwner, skip: Skip = 0, limit: Limit = 100) -> Response:
        """Notes in the order of their ids."""
        return Response(await gateway.queries.list_notes(owner, skip, limit), media_type=JSON)

    @router.get("/{note_id}", response_model=Note, responses=READ | NOT_FOUND)
    async def get_note(gateway: CurrentGateway, owner: CurrentOwner, note_id: NoteId) -> Response:
        """One note."""
        note = await gateway.queries.find_note(owner, note_id)
        if note is None:
            raise ProblemError(404, "note_not_found", "Note not found")
        return Response(note, media_type=JSON)

    @router.put("/{note_id}", response_model=Note, responses=WRITE | NOT_FOUND | BODY, openapi_extra=note_body.openapi)
    async def replace_note(
        gateway: CurrentGateway, owner: CurrentOwner, note_id: NoteId, note: NoteText = body
    ) -> Response:
        """Gives a note a new title and description; `created_date` stays."""
        data = NoteReplacement(note_id=note_id, title=note.title, description=note.description)
        return await perform(gateway, new_command(gateway, owner, ReplaceNote, data))

    @router.delete("/{note_id}", status_code=204, responses=WRITE | NOT_FOUND)
    async def delete_note(gateway: CurrentGateway, owner: CurrentOwner, note_id: NoteId) -> Response:
        """Removes a note."""
        return await perform(gateway, new_command(gateway, owner, DeleteNote, NoteTarget(note_id=note_id)))

    return router
