"""The models of answers, as the OpenAPI document shows them."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from gateway.writes.states import NOTE, NOTE_TEXT
from shared.contracts import PublicToken

LEFT_OUT: Any = None
"""The default of a member of a request that may be left out, but not be null."""
MATCHES = {"matched": "words", "limited": False, "total": 1, "notes": [NOTE]}
ITEMS = {
    "items": [
        {"op": "create", **NOTE_TEXT},
        {"op": "patch", "id": 1, "title": "Blue ink", "if_match": [1]},
        {"op": "delete", "id": 2},
    ]
}
"""Examples."""


class Note(BaseModel, use_attribute_docstrings=True, json_schema_extra={"examples": [NOTE]}):
    """A note."""

    id: int
    title: str
    description: str
    created_date: datetime
    updated_date: datetime
    version: int
    """1 for a new note, and one more after each change; its entity tag."""


class Matches(BaseModel, use_attribute_docstrings=True, json_schema_extra={"examples": [MATCHES]}):
    """What a search has found."""

    matched: Literal["words", "similar_titles"]
    """The kind of match: `similar_titles` if no note has the words."""
    limited: bool
    """Whether there are more matches than were ranked: older ones, or less similar ones."""
    total: int
    """How many were ranked; they are on the pages of this search."""
    notes: list[Note]


class AccessToken(BaseModel, use_attribute_docstrings=True):
    """What RFC 6749 §5.1 answers with."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - no secret
    expires_in: int
    """Seconds."""
    scope: str
    """The scopes, separated by spaces."""


class NewPersonalToken(PublicToken, use_attribute_docstrings=True):
    """A personal token with its secret."""

    token: str
    """The secret, which no other answer contains."""
