"""Clients that read pages: of lists in several orders, of the trash, of versions and searches, and whole exports."""

import base64
import json
import re
from collections import OrderedDict
from itertools import accumulate
from typing import Any

from tests.faults.connection import READ_SECONDS, Connection
from tests.faults.history import COLOURS, Look

WEIGHTS = {"list": 5.0, "search": 2.0, "trash": 1.5, "versions": 1.5, "export": 0.4}
KINDS, CUMULATIVE_WEIGHTS = tuple(WEIGHTS), tuple(accumulate(WEIGHTS.values()))
ORDERS = ("id", "-id", "created", "-created", "updated", "-updated", "title", "-title")
LIMITS, ONE_PAGE = (3, 10, 20), 20
PLAIN, PREFIXES, TOTALS = 0.4, 0.15, 0.1
"""A list is the one that everybody reads, is filtered by title, or counts all notes once in this many."""
WORDS = 0.3
"""A search is for a common word, and not for one note's text, once in this many."""
TURNS, CONDITIONAL = 0.4, 0.5
"""A client follows a link, or sends the tag of its copy, once in this many pages."""
COPIES = 30
EXPORT_SECONDS = 15.0
LINK = re.compile(r'<([^>]+)>; rel="(\w+)"')


class Pages:
    """Reads pages as one client, who keeps copies of the last ones."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._random = connection.random
        self._copies: OrderedDict[str, Look] = OrderedDict()

    async def look(self) -> None:
        """Reads a page, and sometimes the next and the previous one."""
        [what] = self._random.choices(KINDS, cum_weights=CUMULATIVE_WEIGHTS)
        look, path = getattr(self, f"_choose_{what}")()
        while links := await self._get(look, path):
            relation = self._random.choice(("next", "next", "prev"))
            if relation not in links or look.what == "search" or self._random.random() > TURNS:
                break
            look, path = turn(look, relation, links[relation]), links[relation]

    async def look_at_newest(self) -> None:
        """Reads the notes that were updated last, which every write changes."""
        await self._get(*self._choose_newest())

    async def _get(self, look: Look, path: str) -> dict[str, str]:
        """Reads the page unless the client's copy is current; returns the links, or none if it is not answered."""
        copy = self._copies.get(path) if self._random.random() < CONDITIONAL else None
        headers = {"If-None-Match": str(copy.answer.etag)} if copy else {}
        limit = EXPORT_SECONDS if look.what == "export" else READ_SECONDS
        look.answer = answer = await self._connection.ask("GET", path, limit, headers=headers, is_page=True)
        self._connection.history.looks.append(look)
        if copy and answer.status == 304:
            answer.body, answer.link, answer.total = copy.answer.body, copy.answer.link, copy.answer.total
        if copy and (answer.status == 200) == (answer.etag == copy.answer.etag) and answer.status in (200, 304):
            told = f"{answer.status} for {answer.etag}, and the copy was {copy.answer.etag}"
            self._connection.history.complaints.append(f"I4: {path} was answered {told}")
        if answer.status not in (200, 304):
            return {}
        if answer.etag:
            self._copies[path] = look
            if len(self._copies) > COPIES:
                self._copies.popitem(last=False)
        return {relation: path for path, relation in LINK.findall(answer.link or "")}

    def _choose_newest(self) -> tuple[Look, str]:
        return self._new_look("list", limit=ONE_PAGE, sort="-updated"), f"/notes/?limit={ONE_PAGE}&sort=-updated"

    def _new_look(self, what: str, **members: Any) -> Look:
        return Look(self._connection.owner.id, what, **members)

    def _choose_list(self) -> tuple[Look, str]:
        if self._random.random() < PLAIN:
            return self._choose_newest()
        look = self._new_look("list", limit=self._random.choice(LIMITS), sort=self._random.choice(ORDERS))
        path = f"/notes/?limit={look.limit}&sort={look.sort}"
        if self._random.random() < PREFIXES:
            look.prefix = self._random.choice(COLOURS)[: self._random.randint(1, 9)].lower()
            path += f"&title_prefix={look.prefix}"
        if self._random.random() < TOTALS:
            look.is_counted = True
            path += "&total=true"
        return look, path

    def _choose_search(self) -> tuple[Look, str]:
        text = self._random.choice(COLOURS)
        if self._connection.owner.texts and self._random.random() > WORDS:
            text = self._random.choice(self._connection.owner.texts)
        return self._new_look("search", limit=ONE_PAGE, text=text), f"/notes/search?limit={ONE_PAGE}&q={text}"

    def _choose_trash(self) -> tuple[Look, str]:
        limit = self._random.choice(LIMITS)
        return self._new_look("trash", limit=limit), f"/notes/trash?limit={limit}"

    def _choose_versions(self) -> tuple[Look, str]:
        owner, limit = self._connection.owner, self._random.choice(LIMITS)
        note = self._random.choice([*owner.notes, *owner.trash] or [1])
        return self._new_look("versions", limit=limit, note=note), f"/notes/{note}/versions?limit={limit}"

    def _choose_export(self) -> tuple[Look, str]:
        return self._new_look("export"), "/notes/export"


def turn(look: Look, relation: str, path: str) -> Look:
    """The page to which the link leads, whose place the page shows."""
    following = Look(look.owner, look.what, limit=look.limit, sort=look.sort, prefix=look.prefix, note=look.note)
    following.is_backwards, following.is_counted = relation == "prev", look.is_counted
    if look.what == "trash":
        cursor = path.rpartition("cursor=")[2]
        position = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=="))
        following.place = position["revision"], position["id"]
    else:
        note = json.loads(look.answer.body)[0 if following.is_backwards else -1]
        following.place = (note["version"], 0) if look.what == "versions" else (key_of(note, look.sort), note["id"])
    return following


def key_of(note: dict[str, Any], order: str) -> str:
    """The text by which the order sorts the note; its times have the same length and zone."""
    name = order.removeprefix("-")
    return "" if name == "id" else str(note[{"created": "created_date", "updated": "updated_date"}.get(name, name)])
