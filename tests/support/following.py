"""A client that follows changes, by pages or by a stream, and keeps a copy of the notes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

AS_EVENTS = {"Accept": "text/event-stream"}
Json = dict[str, Any]


@dataclass
class Copy:
    """A copy of an owner's notes, and every change that made it."""

    notes: dict[int, Json] = field(default_factory=dict)
    changes: list[Json] = field(default_factory=list)
    cursor: str | None = None

    def apply(self, change: Json) -> None:
        """Applies a change."""
        self.changes.append(change)
        if change["deleted"]:
            assert "note" not in change
            self.notes.pop(change["id"], None)
        else:
            assert change["note"]["id"] == change["id"]
            self.notes[change["id"]] = change["note"]

    @property
    def in_order(self) -> list[Json]:
        """The notes by id."""
        return [self.notes[note_id] for note_id in sorted(self.notes)]

    async def catch_up(self, client: httpx.AsyncClient, *, limit: int = 100, **request: Any) -> "Copy":
        """Reads pages until there are no more."""
        more = True
        while more:
            more = await self.turn_page(client, limit=limit, **request)
        return self

    async def turn_page(self, client: httpx.AsyncClient, *, limit: int = 100, **request: Any) -> bool:
        """Reads one page; returns whether there are more."""
        since = {"since": self.cursor} if self.cursor else {}
        response = await client.get("/notes/changes", params={"limit": str(limit)} | since, **request)
        assert response.status_code == 200, response.text
        page = response.json()
        for change in page["changes"]:
            self.apply(change)
        self.cursor = page["cursor"]
        return bool(page["more"])


@dataclass
class Event:
    """A block of an event stream, without its comments."""

    event: str = ""
    id: str = ""
    data: str = ""
    retry: str = ""

    @property
    def change(self) -> Json:
        """The change that it is about."""
        assert self.event == "change"
        change: Json = json.loads(self.data)
        return change


@dataclass
class EventStream:
    """The events of a response."""

    response: httpx.Response
    comments: int = 0
    last_id: str | None = None
    """The id with which a browser would resume."""
    retries: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changes = self._iter_changes()

    async def _iter_changes(self) -> AsyncIterator[Json]:
        block = Event()
        async for line in self._iter_lines():
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                setattr(block, name, value)
            else:
                if block.id:
                    self.last_id = block.id
                if block.retry:
                    self.retries.append(int(block.retry))
                if block.event:
                    yield block.change
                block = Event()

    async def _iter_lines(self) -> AsyncIterator[str]:
        """The lines, as the standard divides them: httpx would also divide them at other separators of Unicode."""
        rest = b""
        async for part in self.response.aiter_bytes():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line.decode()

    async def next(self) -> Json:
        """The next change."""
        return await anext(self._changes)

    async def take(self, number: int) -> list[Json]:
        """The next changes."""
        return [await self.next() for _ in range(number)]

    async def rest(self) -> list[Json]:
        """The changes until the stream ends."""
        return [change async for change in self._changes]


@asynccontextmanager
async def streaming(
    client: httpx.AsyncClient, since: str | None = None, *, resume: str | None = None, **request: Any
) -> AsyncIterator[EventStream]:
    """An open stream of changes."""
    headers = request.pop("headers", {}) | AS_EVENTS | ({"Last-Event-ID": resume} if resume else {})
    parameters = request.pop("params", {}) | ({"since": since} if since else {})
    async with client.stream("GET", "/notes/changes", params=parameters, headers=headers, **request) as response:
        if response.status_code == 200:
            assert response.headers["content-type"] == "text/event-stream"
        yield EventStream(response)
