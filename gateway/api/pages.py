"""Pages of lists and searches: their query parameters, and the links from one page to the next (RFC 8288).

A cursor is a position in an order: concurrent writes do not move notes from one side of it to the other.
"""

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Annotated, Literal, Self
from urllib.parse import urlencode

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.http.omittable import Omittable
from gateway.http.parameters import INTEGER, Boolean, Integer64, Time, parse_query, parse_time
from gateway.http.requests import Request
from gateway.reads.results import NoteList
from gateway.reads.search_terms import SearchTerms
from gateway.reads.statements import FILTERS, ListShape
from shared.contracts import Int64, StorableText

Order = Literal["id", "-id", "created", "-created", "updated", "-updated", "title", "-title"]
CURSOR_MAX_LENGTH = 2000
SEARCH_MAX_WORDS = 20


class EncodedCursor(BaseModel, frozen=True, extra="forbid", strict=True):
    """A position in a list, which clients get in an encoded form."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Return the decoded cursor; raises ValueError unless it is encoded exactly as in a `Link`."""
        try:
            cursor = cls.model_validate_json(base64.urlsafe_b64decode(str(text).encode() + b"=="))
            is_ours = cursor.encoded == text
        except ValueError:
            is_ours = False
        if not is_ours:
            raise ValueError("is not a cursor from a `Link` of a list of notes")
        return cursor

    @property
    def encoded(self) -> str:
        """The cursor as clients get it."""
        return base64.urlsafe_b64encode(self.model_dump_json(exclude_defaults=True).encode()).decode().rstrip("=")


class Cursor(EncodedCursor, frozen=True):
    """A position between two notes of a list in some order."""

    order: Order
    backwards: bool = False
    """Whether the page ends here, instead of beginning."""
    id: Int64
    key: StorableText | None = None
    """The sort key of the note with this id; None in a list by id."""

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        self.value  # noqa: B018 - raises for a key of the wrong type
        return self

    @classmethod
    def of(cls, listed: NoteList, index: int, order: Order, *, backwards: bool = False) -> Self:
        """Return the position before or after one of the listed notes."""
        key = None if order.endswith("id") else listed.keys[index]
        text = key.isoformat() if isinstance(key, datetime) else key
        return cls(order=order, backwards=backwards, id=listed.ids[index], key=text)

    @property
    def value(self) -> object:
        """The key as an SQL parameter; raises ValueError if it has the wrong type."""
        if self.order.endswith("id"):
            return None
        if self.key is None:
            raise ValueError
        if self.order.endswith("title"):
            return self.key
        time = parse_time(self.key)
        if time.isoformat() != self.key:
            raise ValueError
        return time


Limit = Annotated[int, Field(ge=1, le=1000), INTEGER]


class Page(BaseModel, extra="forbid", use_attribute_docstrings=True):
    """The query parameters for a page of a list."""

    skip: Integer64 = 0
    """The number of items to skip"""
    limit: Limit = 100
    """The maximum number of items to return"""


Prefix = Annotated[StorableText, StringConstraints(min_length=1, max_length=200)]
CURSOR_SCHEMA = WithJsonSchema({"type": "string", "maxLength": CURSOR_MAX_LENGTH})
CursorParameter = Annotated[Cursor, BeforeValidator(Cursor.parse), CURSOR_SCHEMA]


class NotesPage(Page):
    """The query parameters for a page of notes: position, order and filters."""

    sort: Order = "id"
    """The sort order; `-` means descending"""
    cursor: Omittable[CursorParameter] = None
    """The position of the page, from the `Link` of another page; cannot be combined with `skip`"""
    created_from: Omittable[Time] = None
    """Only notes created at this time or later"""
    created_until: Omittable[Time] = None
    """Only notes created before this time"""
    updated_from: Omittable[Time] = None
    """Only notes updated at this time or later"""
    updated_until: Omittable[Time] = None
    """Only notes updated before this time"""
    title_prefix: Omittable[Prefix] = None
    """Only notes whose titles start with this text, in any case, with or without accents"""
    total: Boolean = False
    """Whether to count the notes on all pages, in `X-Total-Count`; takes longer"""

    @field_validator("cursor")
    @classmethod
    def _check_cursor(cls, cursor: Cursor, info: ValidationInfo) -> Cursor:
        if info.data.get("skip"):
            raise ValueError("cannot be used together with skip")
        if cursor.order != info.data.get("sort", cursor.order):
            raise ValueError(f"is from a list with sort={cursor.order}")
        return cursor

    @property
    def is_backwards(self) -> bool:
        """Whether the page ends at its cursor, instead of beginning there."""
        return self.cursor is not None and self.cursor.backwards

    @cached_property
    def shape(self) -> ListShape:
        """The parts of the request that decide the SQL."""
        return ListShape(
            sorted_by=self.sort.removeprefix("-"),
            descending=self.sort.startswith("-") != self.is_backwards,
            filters=frozenset(FILTERS) & self.model_fields_set,
            is_continued=self.cursor is not None,
            is_counted=self.total,
        )

    @property
    def arguments(self) -> dict[str, object]:
        """The parameters of the SQL; one note more than requested shows whether there is another page."""
        after = {"after_key": self.cursor.value, "after_id": self.cursor.id} if self.cursor else {}
        filters = {name: getattr(self, name) for name in self.shape.filters}
        return {"skip": self.skip, "limit": self.limit + 1} | after | filters


def _check_word_count(q: str) -> str:
    """Return the query; raises PydanticCustomError for too many words, since each is compared with every candidate."""
    if SearchTerms.parse(q).word_count > SEARCH_MAX_WORDS:
        raise PydanticCustomError("too_many_words", "Should have at most {limit} words", {"limit": SEARCH_MAX_WORDS})
    return q


class SearchPage(Page):
    """The query parameters of a search."""

    q: Annotated[
        StorableText,
        StringConstraints(min_length=1, max_length=200),
        AfterValidator(_check_word_count),
        Field(description=f'Up to {SEARCH_MAX_WORDS} words: `blue ink`, `"blue ink"`, `ink or pencil`, `ink -red`'),
    ]

    @property
    def terms(self) -> SearchTerms:
        """What to search for."""
        return SearchTerms.parse(self.q)


def arrange_notes(page: NotesPage, listed: NoteList) -> list[str]:
    """Return the page's notes in the order of the list, without the extra one that shows that there are more."""
    notes = listed.notes[: page.limit]
    return notes[::-1] if page.is_backwards else notes


def build_list_links(request: Request, page: NotesPage, listed: NoteList) -> dict[str, str]:
    """Return the page's links by relation."""
    has_more = len(listed.notes) > page.limit
    last = min(len(listed.notes), page.limit) - 1
    if page.skip:
        return _build_skip_links(request, page, has_more=has_more)
    cursors: dict[str, Cursor] = {}
    if listed.notes and (has_more or page.is_backwards):
        cursors["next"] = Cursor.of(listed, 0 if page.is_backwards else last, page.sort)
    if listed.notes and (has_more if page.is_backwards else page.cursor):
        cursors["prev"] = Cursor.of(listed, last if page.is_backwards else 0, page.sort, backwards=True)
    links = {rel: build_url(request, cursor=cursor.encoded) for rel, cursor in cursors.items()}
    return links | {"first": build_url(request)}


def _build_skip_links(request: Request, page: Page, *, has_more: bool) -> dict[str, str]:
    links = {"next": build_url(request, skip=page.skip + page.limit)} if has_more else {}
    if page.skip:
        links["prev"] = build_url(request, skip=max(0, page.skip - page.limit))
    return links | {"first": build_url(request)}


def build_search_links(request: Request, page: SearchPage, total: int) -> dict[str, str]:
    """Return the page's links by relation."""
    return _build_skip_links(request, page, has_more=page.skip + page.limit < total)


def build_forward_links(request: Request, following: EncodedCursor | None) -> dict[str, str]:
    """Return the links of a page of a list that is read in one direction; `following` is None on the last page."""
    links = {"next": build_url(request, cursor=following.encoded)} if following else {}
    return links | {"first": build_url(request)}


def build_page(text: str, links: dict[str, str], total: int | None = None) -> tuple[bytes, str, dict[str, str]]:
    """Return a page's body, its entity tag, and its headers: the links and, if requested, the number of notes."""
    headers = {"Link": build_link_header(links)} | ({} if total is None else {"X-Total-Count": str(total)})
    body = text.encode()
    digest = hashlib.sha256(body)  # processors have instructions for it
    digest.update(str(headers).encode())
    return body, f'"{digest.hexdigest()[:24]}"', headers


def build_url(request: Request, **position: object) -> str:
    """Return the request's URL for another position in the list."""
    kept = [(name, value) for name, value in parse_query(request.query) if name not in ("skip", "cursor")]
    query = urlencode([*kept, *position.items()])
    return request.url_path + (f"?{query}" if query else "")


def build_link_header(links: dict[str, str]) -> str:
    """Return the value of the `Link` header."""
    return ", ".join(f'<{url}>; rel="{rel}"' for rel, url in links.items())


def join_notes(notes: Sequence[str]) -> str:
    """Return a JSON array of notes that are JSON already."""
    return f"[{','.join(notes)}]"
