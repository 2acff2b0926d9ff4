"""What Postgres holds of a run: the commands, the notes, and the audit that triggers have kept of both."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.faults.cluster import Cluster
from tests.faults.history import text_of_item

COMMANDS = """
select id::text, type, status, owner_id, note_id, note_version, body,
  coalesce(body::json->>'description', body::json->>'name') as marker
from commands
"""
TYPES = {201: "note.create", 200: "note.patch", 204: "note.delete"}


@dataclass
class Facts:
    """What the database holds when everything is settled."""

    commands: list[Any]
    notes: list[Any]
    audit: list[Any]

    @classmethod
    async def of(cls, cluster: Cluster) -> "Facts":
        """All of it."""
        audit = await cluster.query("select * from audit order by seq")
        commands = [dict(row) for row in await cluster.query(COMMANDS)]
        texts = {row["id"]: row["description"] for row in audit if row["kind"] == "insert"}
        return cls(
            [each for command in commands for each in with_items(command, texts)],
            await cluster.query("select * from notes"),
            audit,
        )

    def applied(self) -> Iterator[Any]:
        """The commands that had an effect on a note."""
        return (each for each in self.commands if each["status"] == "applied" and each["note_id"])

    def deleted(self) -> set[int]:
        """The notes that a command has deleted."""
        return {row["note_id"] for row in self.applied() if row["type"] == "note.delete"}

    def by_version(self) -> dict[tuple[int, int], str]:
        """What stands in each version of each note, by its commands."""
        return {(row["note_id"], row["note_version"]): row["marker"] or "" for row in self.applied()}

    def by_marker(self) -> dict[str, list[Any]]:
        """The applied commands that wrote a marker, by it."""
        found: dict[str, list[Any]] = defaultdict(list)
        for command in self.commands:
            if command["status"] == "applied" and command["marker"]:
                found[command["marker"]].append(command)
        return found


def with_items(command: dict[str, Any], texts: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The command; of several writes at once also each of them, as if it were a command of its own.

    The first of them is a new note, whose text tells which write of the history it is.
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
