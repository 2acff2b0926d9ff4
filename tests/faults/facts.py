"""The content of Postgres after a run: the notes, the trash, the owners, and the audit by triggers."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from tests.faults.cluster import Cluster
from tests.faults.history import text_of_item
from tests.faults.states import States

OWNERS = """
select id, revision, deleted_date, (
  select count(*) from commands where owner_id = users.id and type is distinct from 'user.register'
) as decided from users
"""
OUTCOMES = """
select id::text, reason, replayed_at, command is not null as is_kept from commands
where reason is not null or replayed_at is not null
"""
REMAINS = """
select kind, owner_id, count(*) as rows from (
  select 'note' as kind, owner_id from notes union all select 'tombstone', owner_id from tombstones
  union all select 'version', owner_id from note_versions union all select 'token', owner_id from personal_tokens
  union all select 'user', id from users
  union all select 'text', owner_id from commands where body is not null or command is not null
) as remains group by kind, owner_id
"""
TYPES = {201: "note.create", 200: "note.patch", 204: "note.delete"}
SEVERAL = "notes.change"
WITHOUT_TEXT = {"note.delete", "note.restore", "note.purge"}


@dataclass
class Facts:
    """The content of the database once everything is settled."""

    audit: list[Any]
    notes: list[Any]
    owners: list[Any] = field(default_factory=list)
    """Each owner's revision, and the number of their decided commands."""
    tombstones: list[Any] = field(default_factory=list)
    outcomes: dict[str, Any] = field(default_factory=dict)
    """Why each command was rejected or has failed, when it was replayed, and whether it is kept, by id."""
    remains: dict[tuple[str, int], int] = field(default_factory=dict)
    """The number of rows of each kind that each owner has: `note`, `tombstone`, `version`, `token`, `user`, `text`."""

    @classmethod
    async def of(cls, cluster: Cluster[Any]) -> "Facts":
        """Reads everything."""
        return cls(
            await cluster.query("select * from audit order by seq"),
            await cluster.query("select * from notes"),
            await cluster.query(OWNERS),
            await cluster.query("select * from tombstones"),
            {row["id"]: row for row in await cluster.query(OUTCOMES)},
            {(row["kind"], row["owner_id"]): row["rows"] for row in await cluster.query(REMAINS)},
        )

    @cached_property
    def decisions(self) -> dict[str, list[Any]]:
        """The decisions on each command, in order: one, or several if it failed at first."""
        found: dict[str, list[Any]] = defaultdict(list)
        for row in self.audit:
            if row["kind"] == "command":
                found[row["id"]].append(row)
        return found

    @cached_property
    def transactions(self) -> dict[int, int]:
        """The place of each transaction in the order of all."""
        first: dict[int, int] = {}
        for row in self.audit:
            first.setdefault(row["transaction"], row["seq"])
        return first

    @cached_property
    def by_id(self) -> dict[str, dict[str, Any]]:
        """Each command, as it was decided last."""
        texts = {row["id"]: row["description"] for row in self.audit if row["kind"] == "insert" and row["version"] == 1}
        return {command: self._command(rows[-1], texts) for command, rows in self.decisions.items()}

    def _command(self, row: Any, texts: dict[str, str]) -> dict[str, Any]:
        body = json.loads(row["body"]) if row["body"] else {}
        items = body.get("items", []) if row["type"] == SEVERAL and row["status"] == "applied" else []
        # Its first item is a new note, whose text identifies the write in the history.
        first = texts.get(str(items[0]["id"]), "") if items else ""
        marker = body.get("description")
        if items:  # another batch of an import than the first does not begin with part 0
            marker = first.removesuffix("#0") if first.endswith("#0") else None
        return {
            "id": row["id"],
            "type": row["type"],
            "status": row["status"],
            "http_status": row["http_status"],
            "owner_id": row["owner_id"],
            "note_id": row["note_id"],
            "note_version": row["version"],
            "body": row["body"],
            "marker": marker,
            "items": items,
            "first": first,
            "place": self.transactions[row["transaction"]],
            "transaction": row["transaction"],
            "decided": row["updated_date"],
        }

    @cached_property
    def commands(self) -> list[dict[str, Any]]:
        """Every command; of several writes at once, also each of them as if it were a command, after it."""
        return [each for command in self.by_id.values() for each in (command, *parts_of(command))]

    @cached_property
    def in_order(self) -> dict[int, list[dict[str, Any]]]:
        """The commands of each transaction, and the writes of each command, in the order of their decisions."""
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for command in sorted(self.by_id.values(), key=lambda each: (each["place"], each["decided"])):
            found[command["transaction"]] += [*parts_of(command)] or [command]
        return found

    def applied(self) -> Iterator[dict[str, Any]]:
        """The commands that had an effect on a note."""
        return (each for each in self.commands if each["status"] == "applied" and each["note_id"])

    @cached_property
    def makers(self) -> dict[tuple[int, int], dict[str, Any]]:
        """The command that produced each version of each note: the first that names it."""
        makers = dict[tuple[int, int], Any]()
        for commands in self.in_order.values():
            for row in commands:
                if row["status"] == "applied" and row["note_version"] and row["note_id"]:
                    makers.setdefault((row["note_id"], row["note_version"]), row)
        return makers

    @cached_property
    def unchanging(self) -> list[dict[str, Any]]:
        """The applied commands that left a note unchanged."""
        versions = ((row, self.makers.get((row["note_id"], row["note_version"] or 0))) for row in self.applied())
        return [row for row, maker in versions if maker and not is_same(maker, row)]

    @cached_property
    def by_version(self) -> dict[tuple[int, int], str]:
        """The text of each version of each note, according to its commands."""
        return {version: row["marker"] or "" for version, row in self.makers.items()}

    @cached_property
    def by_marker(self) -> dict[str, list[dict[str, Any]]]:
        """The applied commands by the text that they wrote."""
        found: dict[str, list[Any]] = defaultdict(list)
        for command in self.commands:
            maker = self.makers.get((command["note_id"], command["note_version"] or 0), command)
            has_text = command["marker"] and command["type"] not in WITHOUT_TEXT
            if command["status"] == "applied" and has_text and is_same(maker, command):
                found[command["marker"]].append(command)
        return found

    @cached_property
    def states(self) -> dict[int, States]:
        """The states of each owner's notes."""
        owners: dict[int, States] = {}
        # Housekeeping erases without the owner's lock, so its rows may be among those of another transaction.
        by_owner = sorted(
            (row for row in self.audit if row["owner_id"] is not None),
            key=lambda row: (row["owner_id"], self.transactions[row["transaction"]]),
        )
        for owner, rows in groupby(by_owner, key=lambda row: row["owner_id"]):
            owners[owner] = States(owner)
            for transaction, together in groupby(rows, key=lambda row: row["transaction"]):
                owners[owner].add(transaction, list(together))
        return owners


def parts_of(command: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each of several writes at once, as if it were a command."""
    marker, _, first = command["first"].rpartition("#")
    for index, item in enumerate(command["items"], start=int(first or 0)):
        about = {"type": TYPES[item["status"]], "note_id": item["id"], "note_version": item.get("version")}
        yield command | about | {"marker": text_of_item(marker, index), "items": (), "item": index}


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both are the same command, or the same part of one."""
    return bool(one["id"] == other["id"] and one.get("item") == other.get("item"))
