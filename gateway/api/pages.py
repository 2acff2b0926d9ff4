"""Which notes of a list or of a search are wanted, and the links from one page to the next (RFC 8288).

A cursor is a place in an order: what lies before and after it stays the same, whatever is written meanwhile.
"""

import base64
import re
from collections.abc import Sequence
from datetime import datetime
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
)
from pydantic_core import PydanticCustomError

from gateway.api.schemas import LEFT_OUT
from gateway.http.parameters import INTEGER, Boolean, Integer64, Time, parse_query, parse_time
from gateway.http.requests import Request
from gateway.reads.queries import Listed
from gateway.reads.statements import FILTERS, ListShape
from shared.contracts import Int64, StorableText

Order = Literal["id", "-id", "created", "-created", "updated", "-updated", "title", "-title"]
CURSOR_MAX_LENGTH = 2000
SEARCH_MAX_WORDS = 20
_EXCLUDED_TWICE = re.compile(r'(?<![^\s!&|()"])(?:-[\s!&|()]*-[\s!&|()]*)+')
"""Signs before one word that mean as much as none."""
_WORD = re.compile(r"\w+")


class Place(BaseModel, frozen=True, extra="forbid", strict=True):
    """Between two notes of a list in some order."""

    order: Order
    backwards: bool = False
    """Whether the page ends here, instead of beginning."""
    id: Int64
    key: StorableText | None = None
    """What the note with this id is sorted by, unless it is the id."""

    @classmethod
    def read(cls, cursor: object) -> Self:
        """The place that a cursor encodes; raises ValueError unless it is encoded exactly as in a `Link`."""
        try:
            place = cls.model_validate_json(base64.urlsafe_b64decode(str(cursor).encode() + b"=="))
            place.value  # noqa: B018 - raises where it is none
            is_ours = place.cursor == cursor
        except ValueError:
            is_ours = False
        if not is_ours:
            raise ValueError("is not one that a Link of this list had")
        return place

    @classmethod
    def of(cls, listed: Listed, index: int, order: Order, *, backwards: bool = False) -> Self:
        """Before or after one of the listed notes."""
        key = None if order.endswith("id") else listed.keys[index]
        text = key.isoformat() if isinstance(key, datetime) else key
        return cls(order=order, backwards=backwards, id=listed.ids[index], key=text)

    @property
    def cursor(self) -> str:
        """The place as a client gets it."""
        return base64.urlsafe_b64encode(self.model_dump_json(exclude_defaults=True).encode()).decode().rstrip("=")

    @property
    def value(self) -> object:
        """The key as Postgres has it; raises ValueError where it cannot be one."""
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


class Page(BaseModel, extra="forbid"):
    """Which part of a list is wanted."""

    skip: Annotated[Integer64, Field(description="How many to leave out")] = 0
    limit: Annotated[int, Field(ge=1, le=1000, description="How many to return at most"), INTEGER] = 100


Prefix = Annotated[StorableText, StringConstraints(min_length=1, max_length=200)]
Cursor = Annotated[
    Place,
    BeforeValidator(Place.read),
    WithJsonSchema({"type": "string", "maxLength": CURSOR_MAX_LENGTH}),
    Field(description="Where the page begins, from a `Link` of a page before; not together with `skip`"),
]


class NotesPage(Page):
    """Which notes of a list are wanted, and in which order."""

    sort: Annotated[Order, Field(description="What the notes are in the order of; with `-` the greatest first")] = "id"
    cursor: Cursor = LEFT_OUT
    created_from: Annotated[Time, Field(description="Only notes created then or later")] = LEFT_OUT
    created_until: Annotated[Time, Field(description="Only notes created earlier")] = LEFT_OUT
    updated_from: Annotated[Time, Field(description="Only notes updated then or later")] = LEFT_OUT
    updated_until: Annotated[Time, Field(description="Only notes updated earlier")] = LEFT_OUT
    title_prefix: Annotated[
        Prefix,
        Field(description="Only notes whose titles begin so, capital letters being others than small ones"),
    ] = LEFT_OUT
    total: Annotated[
        Boolean, Field(description="Whether to count all of them, which takes longer: `X-Total-Count`")
    ] = False

    @field_validator("cursor")
    @classmethod
    def _is_of_this_list(cls, place: Place, info: ValidationInfo) -> Place:
        if info.data.get("skip"):
            raise ValueError("cannot be used together with skip")
        if place.order != info.data.get("sort", place.order):
            raise ValueError(f"is of a list with sort={place.order}")
        return place

    @property
    def place(self) -> Place | None:
        """Where the page begins or ends, if the request says so."""
        return self.cursor if "cursor" in self.model_fields_set else None

    @property
    def shape(self) -> ListShape:
        """What decides the SQL."""
        backwards = self.place is not None and self.place.backwards
        return ListShape(
            sorted_by=self.sort.removeprefix("-"),
            descending=self.sort.startswith("-") != backwards,
            filters=frozenset(FILTERS) & self.model_fields_set,
            is_continued=self.place is not None,
            is_counted=self.total,
        )

    @property
    def arguments(self) -> dict[str, object]:
        """The parameters of the SQL; one note more than wanted tells whether there is another page."""
        after = {"after_key": self.place.value, "after_id": self.place.id} if self.place else {}
        filters = {name: getattr(self, name) for name in self.shape.filters}
        return {"skip": self.skip, "limit": self.limit + 1} | after | filters


def _excluded_once(q: str) -> str:
    """The same query with at most one sign before a word: Postgres refuses one with more than 32, such as a line."""
    return _EXCLUDED_TWICE.sub(" ", q)


def _few_words(q: str) -> str:
    """The same query; raises where each note would be held against very many words."""
    if len(_WORD.findall(q)) > SEARCH_MAX_WORDS:
        raise PydanticCustomError("too_many_words", "Should have at most {limit} words", {"limit": SEARCH_MAX_WORDS})
    return q


class SearchPage(Page):
    """What is searched for, and which part of the matches is wanted."""

    q: Annotated[
        StorableText,
        StringConstraints(min_length=1, max_length=200),
        AfterValidator(_excluded_once),
        AfterValidator(_few_words),
        Field(description=f'At most {SEARCH_MAX_WORDS} words: `blue ink`, `"blue ink"`, `ink or pencil`, `ink -red`'),
    ]


def links_of_list(request: Request, page: NotesPage, listed: Listed) -> tuple[list[str], dict[str, str]]:
    """The notes of the page, in order, and its links by their relation."""
    has_more, notes = len(listed.notes) > page.limit, listed.notes[: page.limit]
    if page.skip:
        return notes, _by_skip(request, page, has_more=has_more)
    backwards = page.place is not None and page.place.backwards
    last = len(notes) - 1
    places: dict[str, Place] = {}
    if notes and (has_more or backwards):
        places["next"] = Place.of(listed, 0 if backwards else last, page.sort)
    if notes and (has_more if backwards else page.place):
        places["prev"] = Place.of(listed, last if backwards else 0, page.sort, backwards=True)
    links = {rel: url_with(request, cursor=place.cursor) for rel, place in places.items()}
    return (notes[::-1] if backwards else notes), links | {"first": url_with(request)}


def _by_skip(request: Request, page: Page, *, has_more: bool) -> dict[str, str]:
    links = {"next": url_with(request, skip=page.skip + page.limit)} if has_more else {}
    if page.skip:
        links["prev"] = url_with(request, skip=max(0, page.skip - page.limit))
    return links | {"first": url_with(request)}


def links_of_search(request: Request, page: SearchPage, total: int) -> dict[str, str]:
    """The links by their relation."""
    return _by_skip(request, page, has_more=page.skip + page.limit < total)


def url_with(request: Request, **place: object) -> str:
    """The request's URL at another place of the list."""
    kept = [(name, value) for name, value in parse_query(request.query) if name not in ("skip", "cursor")]
    query = urlencode([*kept, *place.items()])
    return request.url_path + (f"?{query}" if query else "")


def link_header(links: dict[str, str]) -> str:
    """The value of `Link`."""
    return ", ".join(f'<{url}>; rel="{rel}"' for rel, url in links.items())


def join_notes(notes: Sequence[str]) -> str:
    """A JSON array of what is JSON already."""
    return f"[{','.join(notes)}]"
