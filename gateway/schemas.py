"""What clients get: the models that OpenAPI shows."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, JsonValue


class Note(BaseModel):
    """A note."""

    id: int
    title: str
    description: str
    created_date: datetime
    updated_date: datetime
    version: int


class Answer(BaseModel):
    """The answer that a write would have had, had it waited for its outcome."""

    status: int
    headers: dict[str, str]
    body: JsonValue


class CommandState(BaseModel):
    """What has become of an accepted write."""

    id: UUID
    issued_at: datetime
    status: Literal["pending", "unknown", "applied", "rejected", "failed"]
    answer: Answer | None = None
