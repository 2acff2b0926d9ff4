"""The results of reads."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from shared.primary import Timeline

Revision: TypeAlias = tuple[Timeline | None, int]
"""The state of an owner's notes: numbers are comparable only within a timeline, since a restore sets them back."""
FoundNote: TypeAlias = tuple[str, int]
"""A note's JSON and its version."""


@dataclass(frozen=True, slots=True)
class NoteList:
    """A page of notes as JSON, with their sort keys and ids."""

    notes: list[str]
    ids: list[int]
    keys: list[Any]
    """Empty in a list by id."""
    total: int | None
    """The number of notes on all pages; None unless the request asked to count them."""
    revision: Revision
    """The owner's revision at that moment."""


@dataclass(frozen=True, slots=True)
class TrashedNote:
    """A deleted note as JSON, and its place in the order of the deletions."""

    note: str
    revision: int
    """The owner's revision at the deletion."""
    id: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A page of a search's matches, as JSON."""

    notes: list[str]
    total: int
    """The number of matches on all pages."""
    is_limited: bool
    """Whether there may be more matches than were ranked."""
    matched: str
    """What the first of them matches: `words`, `text` or `similar`."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user and the hash to verify a password against."""

    owner: int
    credentials_version: int
    password_hash: str | None
