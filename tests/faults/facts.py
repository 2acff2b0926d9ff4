"""The content of Postgres after a run: the notes, the trash, the owners, and the audit by triggers."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from tests.faults.cluster import Cluster
from tests.faults.history import text_of_item
from tests.faults.states import States

COMMANDS = """
select id::text, type, status, reason, owner_id, note_id, note_version, body, decided_at, replayed_at,
  command is not null as is_kept, coalesce(body::json->>'description', body::json->>'name') as marker
from commands
"""
OWNERS = """
select id, revision, (
  select count(*) from commands where owner_id = users.id and type is distinct from 'user.register'
) as decided from users
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

    commands: list[Any]
    """Every command; of several writes at once, also each of them as if it were a command, after it."""
    notes: list[Any]
    audit: list[Any]
    owners: list[Any] = field(default_factory=list)
    """Each owner's revision, and the number of their decided commands."""
    accounts: dict[str, Any] = field(default_factory=dict)
    """The commands of people who have registered, by id, and none of them among the `commands`."""
    remains: dict[tuple[str, int], int] = field(default_factory=dict)
    """The number of rows of each kind that each owner has: `note`, `tombstone`, `version`, `token`, `user`, `text`."""
    tombstones: list[Any] = field(default_factory=list)

    @classmethod
    async def of(cls, cluster: Cluster[Any]) -> "Facts":
        """Reads everything."""
        commands = {row["id"]: dict(row) for row in await cluster.query(COMMANDS)}
        people = {row["owner_id"] for row in commands.values() if row["type"] == "user.register"}
        audit = await cluster.query("select * from audit order by seq")
        notes = await cluster.query("select * from notes")
        others = {command: row for command, row in commands.items() if row["owner_id"] not in people}
        return cls(
            list_commands(audit, others),
            [row for row in notes if row["owner_id"] not in people],
            audit,
            await cluster.query(OWNERS),
            {command: row for command, row in commands.items() if row["owner_id"] in people},
            {(row["kind"], row["owner_id"]): row["rows"] for row in await cluster.query(REMAINS)},
            await cluster.query("select * from tombstones"),
        )

    @cached_property
    def people(self) -> set[int]:
        """The users who have registered."""
        return {row["owner_id"] for row in self.accounts.values()}

    @cached_property
    def decisions(self) -> dict[str, list[Any]]:
        """The decisions on each command, in order: one, or several if it failed at first."""
        found: dict[str, list[Any]] = defaultdict(list)
        for row in self.audit:
            if row["kind"] == "command":
                found[row["id"]].append(row)
        return found

    def places(self) -> dict[str, int]:
        """The position of each command's decision in the order of all transactions."""
        first: dict[int, int] = {}
        rows = (row for row in self.audit if row["kind"] == "command")
        return {row["id"]: first.setdefault(row["transaction"], row["seq"]) for row in rows}

    @cached_property
    def by_id(self) -> dict[str, dict[str, Any]]:
        """Each command, as it was decided last."""
        return {command["id"]: command for command in self.commands if "item" not in command}

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

    def makers(self) -> dict[tuple[int, int], dict[str, Any]]:
        """The command that produced each version of each note: the first that names it."""
        return self._makers

    @cached_property
    def _makers(self) -> dict[tuple[int, int], dict[str, Any]]:
        places, makers = self.places(), dict[tuple[int, int], Any]()
        for row in sorted(self.applied(), key=lambda row: (places.get(row["id"], 0), row.get("decided", 0))):
            if row["note_version"]:
                makers.setdefault((row["note_id"], row["note_version"]), row)
        return makers

    @cached_property
    def unchanging(self) -> list[dict[str, Any]]:
        """The applied commands that left a note unchanged."""
        versions = ((row, self._makers.get((row["note_id"], row["note_version"] or 0))) for row in self.applied())
        return [row for row, maker in versions if maker and not is_same(maker, row)]

    @cached_property
    def by_version(self) -> dict[tuple[int, int], str]:
        """The text of each version of each note, according to its commands."""
        return {version: row["marker"] or "" for version, row in self._makers.items()}

    @cached_property
    def by_marker(self) -> dict[str, list[dict[str, Any]]]:
        """The applied commands by the text that they wrote."""
        found: dict[str, list[Any]] = defaultdict(list)
        for command in self.commands:
            maker = self._makers.get((command["note_id"], command["note_version"] or 0), command)
            has_text = command["marker"] and command["type"] not in WITHOUT_TEXT
            if command["status"] == "applied" and has_text and is_same(maker, command):
                found[command["marker"]].append(command)
        return found

    @cached_property
    def states(self) -> dict[int, States]:
        """The states of each owner's notes."""
        owners: dict[int, States] = {}
        by_owner = sorted((row for row in self.audit if row["owner_id"] is not None), key=lambda row: row["owner_id"])
        for owner, rows in groupby(by_owner, key=lambda row: row["owner_id"]):
            owners[owner] = States(owner)
            for transaction, together in groupby(rows, key=lambda row: row["transaction"]):
                owners[owner].add(transaction, list(together))
        return owners


def list_commands(audit: list[Any], rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The commands with these rows, each with its parts after it; what is erased since is taken from the audit."""
    texts = {row["id"]: row["description"] for row in audit if row["kind"] == "insert" and row["version"] == 1}
    transactions: dict[int, int] = {}
    last: dict[str, dict[str, Any]] = {}
    for row in audit:
        place = transactions.setdefault(row["transaction"], row["seq"])
        if row["kind"] == "command" and row["id"] in rows:
            last[row["id"]] = rows[row["id"]] | {"place": place} | decision_of(row, texts)
    return [each for command in last.values() for each in (command, *parts_of(command))]


def decision_of(row: Any, texts: Mapping[str, str]) -> dict[str, Any]:
    """What the audit has of a command: the decision, the text that it has written, and its items."""
    body = json.loads(row["body"]) if row["body"] else {}
    items = body.get("items", ()) if row["type"] == SEVERAL and row["description"] == "applied" else ()
    # The first item is a new note, whose text identifies the write in the history.
    first = texts.get(str(items[0]["id"]), "") if items else ""
    return {
        "id": row["id"],
        "type": row["type"],
        "status": row["description"],
        "owner_id": row["owner_id"],
        "note_id": row["note_id"],
        "note_version": row["version"],
        "body": row["body"],
        "marker": first.removesuffix("#0") if items else body.get("description", body.get("name")),
        "items": items,
        "first": first,
        "transaction": row["transaction"],
        "decided": row["updated_date"],
    }


def parts_of(command: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each of several writes at once, as if it were a command."""
    marker, _, first = command["first"].rpartition("#")
    for index, item in enumerate(command["items"], start=int(first or 0)):
        about = {"type": TYPES[item["status"]], "note_id": item["id"], "note_version": item.get("version")}
        yield command | about | {"marker": text_of_item(marker, index), "items": (), "item": index}


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both are the same command, or the same part of one."""
    return bool(one["id"] == other["id"] and one.get("item") == other.get("item"))
