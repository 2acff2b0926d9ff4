"""The request bodies of writes to notes, single or batched. In the OpenAPI document their names end in `In`."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model

from gateway.api.schemas import ITEMS
from gateway.http.body import Body
from gateway.http.conditional import PreconditionHeaders
from gateway.http.lines import Lines
from gateway.http.omittable import Omittable
from gateway.http.parameters import Time
from gateway.settings import GatewaySettings
from gateway.writes.states import NOTE, NOTE_TEXT
from shared.contracts import (
    MAX_ITEMS,
    MAX_VERSION,
    PAST_INSTANT_END,
    PAST_INSTANT_MIN,
    STORABLE,
    CreateItem,
    Int64,
    NoteItems,
    NoteText,
    check_storable,
)

ITEMS_LIMIT_CHARACTERS = 10_000_000
"""Limit on the total length of the notes in a batch request: a patch of a few bytes rewrites the whole note."""
ITEMS_LIMIT_BYTES = 2 * 1024 * 1024
ITEMS_LIMIT_VALUES = 20_000
"""Limit on the members and items in a request: enough for a full batch request with a few versions for each item."""


LINES_DESCRIPTION = (
    "A note in each line, as lists and exports print it: `title` and `description`, perhaps `created_date`; `id`, "
    "`version` and `updated_date` are ignored, and so are the first and the last line of an export"
)
ImportedTime = Annotated[Time, Field(ge=PAST_INSTANT_MIN, lt=PAST_INSTANT_END)]

Members = dict[str, Any]
"""The members of a model that is made at start, each with its type."""


class _Patch(BaseModel, extra="forbid", json_schema_extra={"examples": [{"title": "Blue ink"}]}):
    pass


class _Text(NoteText, extra="forbid", json_schema_extra={"examples": [NOTE_TEXT]}):
    pass


class _Item(BaseModel, extra="forbid", use_attribute_docstrings=True):
    pass


Version = Annotated[int, Field(ge=1, le=MAX_VERSION, strict=True)]
Versions = Annotated[list[Version], Field(min_length=1, max_length=100)]


class _Change(_Item):
    note_id: Annotated[Int64, Field(alias="id", strict=True)]
    if_match: Omittable[Versions] = None
    """Write only if the note is in one of these versions"""
    if_none_match: Omittable[Versions] = None
    """Write only if the note is in none of these versions"""


class _ImportedNote(NoteText, extra="forbid", json_schema_extra={"examples": [NOTE]}):
    """A note as lists and exports print it; its id, version and update are not imported."""

    id: Any = Field(None, exclude=True)
    version: Any = Field(None, exclude=True)
    updated_date: Any = Field(None, exclude=True)
    created_date: Omittable[ImportedTime] = None

    def to_item(self) -> CreateItem:
        """Return the write that creates the note."""
        return CreateItem.model_validate(self.model_dump(exclude_unset=True))


class _Items(BaseModel, extra="forbid", json_schema_extra={"examples": [ITEMS]}):
    items: list[Any]

    def to_note_items(self, preconditions: PreconditionHeaders) -> NoteItems:
        """Return the command's data; raises ProblemError 428 if a required precondition is missing."""
        changes = {index: item for index, item in enumerate(self.items) if isinstance(item, _Change)}
        preconditions.check_items({index: item.if_match for index, item in changes.items()})
        return NoteItems.model_validate(self.model_dump(exclude_unset=True))


class NoteBodies:
    """Readers of the bodies, with the length limits of the settings."""

    def __init__(self, settings: GatewaySettings) -> None:
        title = build_text_type(settings.title_max_length)
        description = build_text_type(settings.description_max_length)
        text: Members = {"title": title, "description": description}
        parts: Members = {"title": (title, None), "description": (description, None)}
        note: type[NoteText] = create_model("NoteIn", __doc__="The text of a note.", __base__=_Text, **text)
        patch: type[BaseModel] = create_model(
            "NotePatchIn",
            __doc__="A merge patch (RFC 7396) of a note; a member cannot be removed with null.",
            __base__=_Patch,
            **parts,
        )
        self.note = Body(note, "application/json")
        self.patch = Body(patch, "application/merge-patch+json", "application/json")
        imported: type[_ImportedNote] = create_model("ImportedNoteIn", __base__=_ImportedNote, **text)
        self.imported_note = Body(imported)
        self.lines = Lines(LINES_DESCRIPTION, f"{json.dumps(NOTE)}\n", settings.body_limit_bytes)
        longest = settings.title_max_length + settings.description_max_length
        limit = max(1, min(MAX_ITEMS, ITEMS_LIMIT_CHARACTERS // longest))
        self.items = Body(
            _build_items_model(text, parts, limit),
            "application/json",
            discriminator="op",
            values_limit=ITEMS_LIMIT_VALUES,
            limit_bytes=ITEMS_LIMIT_BYTES,
        )


def _build_items_model(text: Members, parts: Members, limit: int) -> type[_Items]:
    """Return the model of a batch with at most `limit` writes, whose members have these types."""

    def item(op: str, base: type[BaseModel], fields: Members) -> type[BaseModel]:
        doc = f"One of several writes: {op} a note."
        fields = {"op": Literal[op], **fields}
        return create_model(f"{op.title()}ItemIn", __doc__=doc, __base__=base, **fields)

    create = item("create", _Item, text)
    replace = item("replace", _Change, text)
    patch = item("patch", _Change, parts)
    delete = item("delete", _Change, {})
    one = Annotated[create | replace | patch | delete, Field(discriminator="op")]  # type: ignore[valid-type]
    several = Annotated[list[one], Field(min_length=1, max_length=limit)]
    doc = "Several writes in order, applied atomically."
    return create_model("NoteItemsIn", __doc__=doc, __base__=_Items, items=several)


def build_text_type(max_length: int) -> object:
    """Return the type of a text of limited length."""
    # With the limit after the validator, pydantic's error would say "items" instead of "characters".
    return Annotated[str, Field(max_length=max_length, json_schema_extra=STORABLE), AfterValidator(check_storable)]
