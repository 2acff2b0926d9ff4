"""The data of commands on notes."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from shared.contracts.values import STORABLE, Int64, PastInstant, check_storable

TITLE_HARD_LIMIT = 10_000
DESCRIPTION_HARD_LIMIT = 1_000_000
"""In characters; a gateway's settings may lower them."""
MAX_ITEMS = 1000
"""Writes in one command."""
MAX_TAGGED_VERSION = 10**10 - 1
"""A gateway passes on entity tags of up to ten digits; those above MAX_VERSION match no note."""
MAX_VERSIONS = 16_384
"""Versions in a precondition; more entity tags do not fit into a request's headers."""


Title = Annotated[str, Field(max_length=TITLE_HARD_LIMIT, json_schema_extra=STORABLE), AfterValidator(check_storable)]
Description = Annotated[
    str, Field(max_length=DESCRIPTION_HARD_LIMIT, json_schema_extra=STORABLE), AfterValidator(check_storable)
]
Versions = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MAX_TAGGED_VERSION)], ...], Field(max_length=MAX_VERSIONS, fail_fast=True)
]


class NoteText(BaseModel, frozen=True):
    """The text of a note."""

    title: Title
    description: Description


class Preconditions(BaseModel, frozen=True):
    """Conditions on a note's version; without any, every version is accepted."""

    if_match: Versions | None = None
    if_none_match: Versions | Literal["*"] | None = None

    def allow(self, version: int) -> bool:
        """Whether this version meets the preconditions."""
        if self.if_match is not None and version not in self.if_match:
            return False
        return self.if_none_match is None or (self.if_none_match != "*" and version not in self.if_none_match)


class NoteTarget(Preconditions, frozen=True):
    """The note that a command concerns."""

    note_id: Int64


class NoteReplacement(NoteTarget, NoteText, frozen=True):
    """A note's new text."""


class NotePatch(NoteTarget, frozen=True):
    """New text for some members of a note; the others stay the same."""

    title: Title | None = None
    description: Description | None = None


class CreateItem(NoteText, frozen=True):
    """One of several writes: a new note."""

    op: Literal["create"] = "create"
    created_date: PastInstant | None = None
    """When an imported note was created; a later time than the command's counts as the command's."""


class ReplaceItem(NoteReplacement, frozen=True):
    """One of several writes: a new text for a note."""

    op: Literal["replace"] = "replace"


class PatchItem(NotePatch, frozen=True):
    """One of several writes: new text for some members of a note."""

    op: Literal["patch"] = "patch"


class DeleteItem(NoteTarget, frozen=True):
    """One of several writes: the deletion of a note."""

    op: Literal["delete"] = "delete"


NoteItem = Annotated[CreateItem | ReplaceItem | PatchItem | DeleteItem, Field(discriminator="op")]


class NoteItems(BaseModel, frozen=True):
    """Several writes in order, applied atomically."""

    items: Annotated[tuple[NoteItem, ...], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class WrittenItem(BaseModel, frozen=True, use_attribute_docstrings=True):
    """The result of one write of a batch."""

    status: int
    """The HTTP status that this write would have as a single request."""
    id: int
    version: int | None = None
    """The version of the note; null if the write deletes it."""


class WrittenItems(BaseModel, frozen=True):
    """The results of the writes of a batch, in their order."""

    items: tuple[WrittenItem, ...]
