"""The state of an accepted write, as served at its URL."""

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, JsonValue

from shared.contracts import PrintedTime

TIME = "2026-11-22T15:25:31.342946+00:00"
NOTE_TEXT = {"title": "Ink", "description": "Buy a bottle"}
NOTE = {"id": 1, **NOTE_TEXT, "created_date": TIME, "updated_date": TIME, "version": 1}
"""Examples."""
_PENDING = {"id": "01a203dc-cb4e-7573-81ba-d03f29afccf3", "issued_at": TIME, "status": "pending", "answer": None}
_RESPONSE = {"status": 201, "headers": {"ETag": '"1"', "Location": "/notes/1"}, "body": NOTE}


class OriginalAnswer(BaseModel):  # the schema's name, by which generated clients know it
    """The response that a write would have had if it had waited for its outcome."""

    status: int
    headers: dict[str, str]
    body: JsonValue


class CommandState(
    BaseModel,
    use_attribute_docstrings=True,
    json_schema_extra={"examples": [_PENDING, _PENDING | {"status": "applied", "answer": _RESPONSE}]},
):
    """The state of an accepted write."""

    id: UUID
    issued_at: PrintedTime
    status: Literal["pending", "unknown", "applied", "rejected", "failed"]
    """`unknown` if the broker had not confirmed the write and it has no outcome yet."""
    answer: OriginalAnswer | None = None
