"""Commands as a gateway builds them, for tests without a gateway."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from uuid_utils.compat import uuid7

from shared.contracts import (
    ChangeNotes,
    CreateNote,
    DeleteNote,
    NoteItem,
    NoteItems,
    NotePatch,
    NoteReplacement,
    NoteTarget,
    NoteText,
    PatchNote,
    PurgeNote,
    ReplaceNote,
    RestoreNote,
)
from shared.tables import IMPLICIT_OWNER

Publish = Callable[..., Awaitable[None]]
"""Publishes commands, or other events, as one message."""
CHEAP_HASH = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2g"
"""A password hash for users who never sign in."""
DIGEST = "c0ffee"
"""The digest of a personal token that does not exist."""


def attributes() -> dict[str, Any]:
    """The envelope of a fresh command."""
    return {
        "id": uuid7(),
        "time": datetime.now(UTC),
        "owner": IMPLICIT_OWNER,
        "credentials_version": 1,
        "fingerprint": "same",
        "attempt_id": uuid4(),
    }


def create(title: str = "Ink", description: str = "", **envelope: Any) -> CreateNote:
    data = NoteText(title=title, description=description)
    return CreateNote.model_validate(attributes() | envelope | {"data": data})


def replace(
    note_id: int, title: str = "Pen", if_match: tuple[int, ...] | None = None, description: str = "", **envelope: Any
) -> ReplaceNote:
    data = NoteReplacement(note_id=note_id, title=title, description=description, if_match=if_match)
    return ReplaceNote.model_validate(attributes() | envelope | {"data": data})


def patch(
    note_id: int,
    title: str | None = None,
    description: str | None = None,
    if_match: tuple[int, ...] | None = None,
    **envelope: Any,
) -> PatchNote:
    data = NotePatch(note_id=note_id, title=title, description=description, if_match=if_match)
    return PatchNote.model_validate(attributes() | envelope | {"data": data})


def delete(note_id: int, if_match: tuple[int, ...] | None = None, **envelope: Any) -> DeleteNote:
    return DeleteNote.model_validate(attributes() | envelope | {"data": NoteTarget(note_id=note_id, if_match=if_match)})


def restore(note_id: int, if_match: tuple[int, ...] | None = None, **envelope: Any) -> RestoreNote:
    data = NoteTarget(note_id=note_id, if_match=if_match)
    return RestoreNote.model_validate(attributes() | envelope | {"data": data})


def purge(note_id: int, if_match: tuple[int, ...] | None = None, **envelope: Any) -> PurgeNote:
    return PurgeNote.model_validate(attributes() | envelope | {"data": NoteTarget(note_id=note_id, if_match=if_match)})


def several(*items: NoteItem, **envelope: Any) -> ChangeNotes:
    return ChangeNotes.model_validate(attributes() | envelope | {"data": NoteItems(items=items)})
