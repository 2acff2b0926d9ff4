"""The states of an owner's notes as committed, one after the other, from the audit: what a read can have seen."""

import json
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any

ORDERS = {"id": None, "created": "created_date", "updated": "updated_date", "title": "title"}
NEVER = float("-inf")


@dataclass(slots=True)
class Transaction:
    """What one transaction did to an owner."""

    id: int
    place: int
    rows: list[Any]
    """Its audit, without the commands."""
    revision: int = 0
    """The owner's after it."""
    purged_revision: int = 0
    sent: float = NEVER
    """When the last of its commands was sent, as far as is known."""


@dataclass(slots=True)
class Timeline:
    """The versions of one note: each with the first state in which it had it, 0 where it is not there."""

    states: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def add(self, state: int, version: int) -> None:
        """Record that the note has this version from this state on."""
        self.states.append(state)
        self.versions.append(version)

    def between(self, first: int, last: int) -> Sequence[int]:
        """The versions in these states and all between them."""
        begin, end = bisect_right(self.states, first) - 1, bisect_right(self.states, last)
        return self.versions[begin:end] if begin >= 0 else [0, *self.versions[:end]]


class States:
    """The states of one owner's notes: number 0 is empty, and each transaction makes the next one."""

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.transactions: list[Transaction] = []
        self.index: dict[int, int] = {}
        """The number of the state that each transaction made."""
        self.notes: dict[int, Timeline] = defaultdict(Timeline)
        self.trash: dict[int, Timeline] = defaultdict(Timeline)
        self.texts: dict[tuple[int, int], str] = {}
        """The JSON of each version that a transaction left."""
        self.made: dict[tuple[int, int], int] = {}
        """The first state with each version of each note."""
        self.buried: dict[tuple[int, int], int] = {}
        """The first state with each version of each note in the trash."""
        self.is_deleted = False
        """Whether the owner was deleted in the end; rows that were removed since are left out."""
        self._known: list[tuple[float, int]] = []
        self._times: list[float] = []
        self._least: list[int] = []
        self._sent: list[float] = []

    def add(self, transaction: int, rows: list[Any]) -> None:
        """Append what a transaction did."""
        if self.is_deleted:
            return
        before = self.transactions[-1] if self.transactions else None
        made = Transaction(transaction, rows[0]["seq"], [row for row in rows if row["kind"] != "command"])
        made.revision, made.purged_revision = (before.revision, before.purged_revision) if before else (0, 0)
        self.transactions.append(made)
        state = self.index[transaction] = len(self.transactions)
        for row in made.rows:
            note = int(row["id"])
            if row["kind"] == "owner":
                made.revision, made.purged_revision = row["revision"], row["purged_revision"] or 0
                self.is_deleted = self.is_deleted or row["deleted_date"] is not None
            elif row["kind"] in ("buried", "unburied"):
                is_there = row["kind"] == "buried" and row["title"] is not None
                self.trash[note].add(state, row["version"] if is_there else 0)
                if is_there:
                    self.buried.setdefault((note, row["version"]), state)
            else:
                self.notes[note].add(state, 0 if row["kind"] == "delete" else row["version"])
                if row["kind"] != "delete":
                    self.texts[note, row["version"]] = printed(row)
                    self.made.setdefault((note, row["version"]), state)

    def learn(self, at: float, state: int) -> None:
        """Record that an answer at this time has shown this state or a later one."""
        self._known.append((at, state))

    def conclude(self) -> None:
        """Prepare for questions about times, once all answers and all sending times are known."""
        self._known.sort()
        self._times = [at for at, _ in self._known]
        self._least = [0, *accumulate((state for _, state in self._known), max)]
        self._sent = [*accumulate((each.sent for each in self.transactions), max)]

    def least(self, asked: float) -> int:
        """The oldest state that a request sent at this time may see: what had been answered to anyone before."""
        return self._least[bisect_left(self._times, asked)]

    def most(self, answered: float) -> int:
        """The newest state that an answer at this time may have seen: what had been sent before."""
        return bisect_right(self._sent, answered)

    def parsed(self, note: int, version: int) -> dict[str, Any]:
        """The members of a version, as answers show them; none if no transaction left it."""
        text = self.texts.get((note, version))
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def versions(self, note: int, asked: float, answered: float, *, in_trash: bool = False) -> Sequence[int]:
        """The versions of a note that a request between these times may see; 0 if it may not find it."""
        timelines, least = self.trash if in_trash else self.notes, self.least(asked)
        if note not in timelines:
            return [0]
        return timelines[note].between(least, max(least, self.most(answered)))


class State:
    """One of an owner's states, which becomes the next one with each transaction."""

    def __init__(self) -> None:
        self.revision = 0
        self.notes: dict[int, Any] = {}
        """The row of each note in the audit."""
        self.texts: dict[int, str] = {}
        self.trash: dict[int, tuple[int, str]] = {}
        """The revision and the JSON of each note in the trash."""
        self.orders: dict[str, list[tuple[Any, int]]] = {name: [] for name in (*ORDERS, "trash")}
        """Sort key and id of each note, in each order."""

    def apply(self, transaction: Transaction) -> None:
        """Become the state that the transaction left."""
        self.revision = transaction.revision
        for row in transaction.rows:
            if row["kind"] in ("buried", "unburied"):
                self._bury(row)
            elif row["kind"] != "owner":
                self._put(row)

    def _put(self, row: Any) -> None:
        note = int(row["id"])
        for name, column in ORDERS.items():
            if note in self.notes:
                remove(self.orders[name], (key_of(self.notes[note], column), note))
            if row["kind"] != "delete":
                insort(self.orders[name], (key_of(row, column), note))
        if row["kind"] == "delete":
            self.notes.pop(note, None)
            self.texts.pop(note, None)
        else:
            self.notes[note] = row
            self.texts[note] = printed(row)

    def _bury(self, row: Any) -> None:
        note = int(row["id"])
        if note in self.trash:
            remove(self.orders["trash"], (self.trash.pop(note)[0], note))
        if row["kind"] == "buried" and row["title"] is not None:
            text = f'{printed(row)[:-1]},"deleted_date":"{print_time(row["deleted_date"])}"}}'
            self.trash[note] = row["revision"], text
            insort(self.orders["trash"], (row["revision"], note))

    def walk(self, order: str, place: tuple[Any, int] | None, *, is_descending: bool) -> Iterator[int]:
        """The ids from a place on."""
        entries = self.orders[order]
        if is_descending:
            begin = len(entries) if place is None else bisect_left(entries, place)
            yield from (entries[index][1] for index in range(begin - 1, -1, -1))
        else:
            begin = 0 if place is None else bisect_right(entries, place)
            yield from (entries[index][1] for index in range(begin, len(entries)))


def key_of(row: Any, column: str | None) -> str:
    """The text by which an order sorts a note."""
    if column is None:
        return ""
    return str(row[column]) if column == "title" else print_time(row[column])


def remove(entries: list[tuple[Any, int]], entry: tuple[Any, int]) -> None:
    """Remove an entry of a sorted list."""
    place = bisect_left(entries, entry)
    if entries[place : place + 1] == [entry]:
        del entries[place]


def print_time(time: datetime) -> str:
    """The time as answers show it."""
    return time.isoformat(timespec="microseconds")


def printed(row: Any) -> str:
    """The note as answers show it."""
    return (
        f'{{"id":{row["id"]},"title":{json.dumps(row["title"])},"description":{json.dumps(row["description"])},'
        f'"created_date":"{print_time(row["created_date"])}","updated_date":"{print_time(row["updated_date"])}",'
        f'"version":{row["version"]}}}'
    )
