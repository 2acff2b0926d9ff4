"""The content of Postgres after a run: the commands, the notes, and the audit of both by triggers."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faults.cluster import Cluster
from tests.faults.history import text_of_item

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


@dataclass
class Facts:
    """The content of the database once everything is settled."""

    commands: list[Any]
    notes: list[Any]
    audit: list[Any]
    owners: list[Any] = field(default_factory=list)
    """Each owner's revision, and the number of their decided commands."""
    accounts: dict[str, Any] = field(default_factory=dict)
    """The commands of people who have registered, by id, and none of them among the `commands`."""
    remains: dict[tuple[str, int], int] = field(default_factory=dict)
    """The number of rows of each kind that each owner has: `note`, `tombstone`, `version`, `token`, `user`, `text`."""

    @classmethod
    async def of(cls, cluster: Cluster[Any]) -> "Facts":
        """Reads everything."""
        audit = await cluster.query("select * from audit order by seq")
        commands = [dict(row) for row in await cluster.query(COMMANDS)]
        texts = {row["id"]: row["description"] for row in audit if row["kind"] == "insert"}
        people = {row["owner_id"] for row in commands if row["type"] == "user.register"}
        others = [row for row in commands if row["owner_id"] not in people]
        notes = await cluster.query("select * from notes")
        return cls(
            [each for command in others for each in with_items(command, texts)],
            [row for row in notes if row["owner_id"] not in people],
            audit,
            await cluster.query(OWNERS),
            {row["id"]: row for row in commands if row["owner_id"] in people},
            {(row["kind"], row["owner_id"]): row["rows"] for row in await cluster.query(REMAINS)},
        )

    def applied(self) -> Iterator[Any]:
        """The commands that had an effect on a note."""
        return (each for each in self.commands if each["status"] == "applied" and each["note_id"])

    def departed(self) -> set[int]:
        """The people who have deleted their account: a batch raises the revision of a deleted user by one only."""
        leaves = (row for row in self.accounts.values() if row["type"] == "user.delete" and row["status"] == "applied")
        return {row["owner_id"] for row in leaves}

    def places(self) -> dict[str, int]:
        """The position of each command's decision in the order of all transactions."""
        first: dict[int, int] = {}
        return {
            row["id"]: first.setdefault(row["transaction"], row["seq"])
            for row in self.audit
            if row["kind"] == "command"
        }

    def makers(self) -> dict[tuple[int, int], Any]:
        """The command that produced each version of each note: the first that names it."""
        places, makers = self.places(), dict[tuple[int, int], Any]()
        for row in sorted(self.applied(), key=lambda row: places.get(row["id"], 0)):
            if row["note_version"]:
                makers.setdefault((row["note_id"], row["note_version"]), row)
        return makers

    def unchanging(self) -> list[Any]:
        """The applied commands that left a note unchanged."""
        makers = self.makers()
        versions = ((row, makers.get((row["note_id"], row["note_version"]))) for row in self.applied())
        return [row for row, maker in versions if maker and maker is not row]

    def deleted(self) -> set[int]:
        """The notes that a command has deleted."""
        return {row["note_id"] for row in self.applied() if row["type"] == "note.delete"}

    def by_version(self) -> dict[tuple[int, int], str]:
        """The text of each version of each note, according to its commands."""
        return {version: row["marker"] or "" for version, row in self.makers().items()}

    def by_marker(self) -> dict[str, list[Any]]:
        """The applied commands by the marker that they wrote."""
        found: dict[str, list[Any]] = defaultdict(list)
        makers = self.makers()
        for command in self.commands:
            has_written = makers.get((command["note_id"], command["note_version"]), command) is command
            if command["status"] == "applied" and command["marker"] and has_written:
                found[command["marker"]].append(command)
        return found


def with_items(command: dict[str, Any], texts: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The command; for several writes at once, also each of them as if it were a command.

    The first of them is a new note, whose text identifies the write in the history.
    """
    if command["type"] != "notes.change" or command["status"] != "applied":
        yield command
        return
    items = json.loads(command["body"])["items"]
    marker = texts[str(items[0]["id"])].partition("#")[0]
    yield command | {"marker": marker}
    for index, item in enumerate(items):
        about = {"type": TYPES[item["status"]], "note_id": item["id"], "note_version": item["version"]}
        yield command | about | {"marker": text_of_item(marker, index)}
