"""The models of responses, for the OpenAPI document."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from gateway.writes.states import NOTE, NOTE_TEXT, TIME
from shared.contracts import PublicToken

# Examples
MATCHES = {"matched": "words", "limited": False, "total": 1, "notes": [NOTE]}
CHANGES = {
    "changes": [
        {"id": 1, "revision": 7, "deleted": False, "note": NOTE},
        {"id": 2, "revision": 8, "deleted": True},
    ],
    "cursor": "3.8.end.0.9f86d081884c",
    "more": False,
}
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


class Change(BaseModel, use_attribute_docstrings=True):
    """A note's last change."""

    id: int
    """The note's."""
    revision: int
    """Each write raises the revision of its user's notes; 0 if the note is older than revisions."""
    deleted: bool
    note: Annotated[Note | SkipJsonSchema[None], Field(json_schema_extra=lambda schema: schema.pop("default"))] = None
    """The note in its current state; absent if it is deleted."""


class Changes(BaseModel, use_attribute_docstrings=True, json_schema_extra={"examples": [CHANGES]}):
    """Changes in the order of their revisions."""

    changes: list[Change]
    cursor: str
    """Where the next request begins: its `since`."""
    more: bool
    """Whether there are more changes already."""


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
    """The secret; no other response contains it."""
