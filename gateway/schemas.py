"""What clients get: the models that OpenAPI shows."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, JsonValue

from shared.contracts import PrintedTime, PublicToken

LEFT_OUT: Any = None
"""The default of a member of a request that may be left out, but not be null."""
TIME = "2026-11-22T15:25:31.342946+00:00"
NOTE_TEXT = {"title": "Ink", "description": "Buy a bottle"}
NOTE = {"id": 1, **NOTE_TEXT, "created_date": TIME, "updated_date": TIME, "version": 1}
MATCHES = {"matched": "words", "limited": False, "total": 1, "notes": [NOTE]}
ITEMS = {
    "items": [
        {"op": "create", **NOTE_TEXT},
        {"op": "patch", "id": 1, "title": "Blue ink", "if_match": [1]},
        {"op": "delete", "id": 2},
    ]
}
PENDING = {"id": "01a203dc-cb4e-7573-81ba-d03f29afccf3", "issued_at": TIME, "status": "pending", "answer": None}
ANSWER = {"status": 201, "headers": {"ETag": '"1"', "Location": "/notes/1"}, "body": NOTE}
"""Examples."""


class Note(BaseModel, json_schema_extra={"examples": [NOTE]}):
    """A note."""

    id: int
    title: str
    description: str
    created_date: datetime
    updated_date: datetime
    version: int


class Matches(BaseModel, json_schema_extra={"examples": [MATCHES]}):
    """What a search has found."""

    matched: Literal["words", "similar_titles"]
    """By what: `similar_titles` where no note has the words."""
    limited: bool
    """Whether there are more matches than were ranked: older ones, or less similar ones."""
    total: int
    """How many were ranked; they are on the pages of this search."""
    notes: list[Note]


class Answer(BaseModel):
    """The answer that a write would have had, had it waited for its outcome."""

    status: int
    headers: dict[str, str]
    body: JsonValue


class AccessToken(BaseModel):
    """What RFC 6749 §5.1 answers with."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - no secret
    expires_in: int
    """Seconds."""
    scope: str


class NewPersonalToken(PublicToken):
    """A personal token with its secret."""

    token: str


class CommandState(
    BaseModel, json_schema_extra={"examples": [PENDING, PENDING | {"status": "applied", "answer": ANSWER}]}
):
    """What has become of an accepted write."""

    id: UUID
    issued_at: PrintedTime
    status: Literal["pending", "unknown", "applied", "rejected", "failed"]
    answer: Answer | None = None
