"""The models of answers, for the OpenAPI document."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from gateway.writes.states import NOTE, NOTE_TEXT, TIME
from shared.contracts import PublicToken

# Examples
MATCHES = {"matched": "words", "limited": False, "total": 1, "notes": [NOTE]}
ITEMS = {
    "items": [
        {"op": "create", **NOTE_TEXT},
        {"op": "patch", "id": 1, "title": "Blue ink", "if_match": [1]},
        {"op": "delete", "id": 2},
    ]
}


class Note(BaseModel, use_attribute_docstrings=True, json_schema_extra={"examples": [NOTE]}):
    """A note."""

    id: int
    title: str
    description: str
    created_date: datetime
    updated_date: datetime
    version: int
    """1 for a new note, incremented by each change; also the note's entity tag."""


class TrashedNote(Note, use_attribute_docstrings=True, json_schema_extra={"examples": [NOTE | {"deleted_date": TIME}]}):
    """A deleted note that can be restored."""

    deleted_date: datetime
    """When it was deleted; its text is erased after the retention of the trash."""


class Matches(BaseModel, use_attribute_docstrings=True, json_schema_extra={"examples": [MATCHES]}):
    """The result of a search."""

    matched: Literal["words", "text", "similar"]
    """What the first note matches: `text` if none has the words, `similar` if none contains the text, either."""
    limited: bool
    """Whether there may be more matches, older or less similar, than were ranked."""
    total: int
    """The number of ranked matches, on all pages."""
    notes: list[Note]


class AccessToken(BaseModel, use_attribute_docstrings=True):
    """An access token (RFC 6749 §5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - no secret
    expires_in: int
    """The lifetime in seconds."""
    scope: str
    """The scopes, separated by spaces."""


class NewPersonalToken(PublicToken, use_attribute_docstrings=True):
    """A personal token with its secret."""

    token: str
    """The secret; no other answer contains it."""
