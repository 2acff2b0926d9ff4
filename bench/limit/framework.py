"""FastAPI's own limit: the routes answer a fixed note."""

from fastapi import FastAPI, Response

NOTE = b'{"id":1,"title":"Ink","description":"","created_date":"2026-01-01T00:00:00+00:00"}'

app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})


@app.post("/notes/")
async def create_note() -> Response:
    """Store nothing."""
    return Response(NOTE, 201, media_type="application/json")


@app.get("/notes/{note_id}")
async def read_note(note_id: int) -> Response:  # noqa: ARG001 - FastAPI parses it all the same
    """Read nothing."""
    return Response(NOTE, media_type="application/json")
