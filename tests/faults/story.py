"""Made-up histories with the database's facts, for the tests of the checker."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from tests.faults.checker import violations
from tests.faults.facts import Facts
from tests.faults.history import Answer, Follow, History, Look, Read, Seen, Write, title_of
from tests.faults.states import print_time, printed

OWNER = 7
START = datetime(2026, 11, 30, tzinfo=UTC)
NOTE_COLUMNS = (
    "owner_id",
    "version",
    "title",
    "description",
    "created_date",
    "updated_date",
    "deleted_date",
    "revision",
)
COMMAND_COLUMNS = ("type", "status", "http_status", "note_id", "body")
COLUMNS = ("kind", "id", *NOTE_COLUMNS, "purged_revision", *COMMAND_COLUMNS)
STATUSES = {"note.create": 201, "note.delete": 204, "note.purge": 204, "rejected": 404}
Break = Callable[["Story"], None]


@dataclass
class Story:
    """A made-up history with the database's facts; each step takes a second, and each command is a transaction."""

    history: History = field(default_factory=History)
    facts: Facts = field(default_factory=lambda: Facts([], []))
    now: float = 0.0
    revision: int = 0
    horizon: int = 0
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The last row of each note in the audit."""

    def answered(self, status: int, *, seconds: float = 0.5, **members: Any) -> Answer:
        self.now += 1
        return Answer(0, self.now, 4.0, self.now + seconds, status, **members)

    def written(self, kind: str, note: int | None, marker: str, *attempts: Answer, **members: Any) -> Write:
        write = Write(OWNER, kind, note, marker, members.pop("key", None), attempts=list(attempts), **members)
        self.history.writes.append(write)
        return write

    def commit(self, *rows: dict[str, Any], is_together: bool = False) -> None:
        """Audits a transaction, or more of the last one; rows without a revision get the owner's, which it raises."""
        self.revision += not is_together
        audit = self.facts.audit
        number = len(audit) + 1
        transaction = audit[-1]["transaction"] if is_together else number
        owner = {"kind": "owner", "id": str(OWNER), "purged_revision": self.horizon}
        for place, row in enumerate([*rows, owner]):
            blank = dict.fromkeys(COLUMNS) | {"owner_id": OWNER, "revision": self.revision}
            now = START + timedelta(seconds=number, microseconds=place)
            dates = {"created_date": START, "updated_date": now}
            dates |= {"deleted_date": now} if row["kind"] == "buried" else {}
            audit.append(blank | dates | row | {"seq": len(audit) + 1, "transaction": transaction})
            self._store(audit[-1])

    def _store(self, row: dict[str, Any]) -> None:
        """Changes the tables as the row in the audit says."""
        note = int(row["id"]) if row["kind"] not in ("command", "owner") else 0
        if row["kind"] in ("insert", "update", "delete"):
            self.rows[note] = row
            self.facts.notes = [each for each in self.facts.notes if each["id"] != note]
            if row["kind"] != "delete":
                self.facts.notes.append(row | {"id": note})
        elif note:
            self.facts.tombstones = [each for each in self.facts.tombstones if each["id"] != note]
            if row["kind"] == "buried":
                self.facts.tombstones.append(row | {"id": note})

    def command(self, kind: str, note: int | None, version: int | None, status: str = "applied", **members: Any) -> Any:
        """The audit's row of a decision."""
        number = sum(row["kind"] == "command" for row in self.facts.audit) + 1
        http_status = STATUSES.get(status, STATUSES.get(kind, 200))
        about = {"type": kind, "status": status, "http_status": http_status, "note_id": note, "version": version}
        return {"kind": "command", "id": f"c{number}", "revision": None} | about | members

    def row(self, kind: str, note: int, version: int, text: str | None = None, **members: Any) -> dict[str, Any]:
        """The audit's row of a note, with the text that it has if no other is given."""
        before = self.rows.get(note, {})
        titled = before.get("title") or title_of(text or "")
        about = {"title": titled, "description": before.get("description") if text is None else text}
        return {"kind": kind, "id": str(note), "version": version} | about | members

    def applied(self, note: int, version: int, text: str | None, kind: str = "note.replace", **members: Any) -> None:
        """A command that is applied to a note: its decision, and the rows that it writes."""
        before = self.rows.get(note, {}).get("version", version)
        rows = {
            "note.create": lambda: [self.row("insert", note, version, text)],
            "note.delete": lambda: [self.row("delete", note, before), self.row("buried", note, before)],
            "note.restore": lambda: [self.row("insert", note, version), self.row("unburied", note, before)],
            "note.purge": lambda: [self.row("buried", note, before, title=None, description=None)],
        }.get(kind, lambda: [self.row("update", note, version, text)] if version != before else [])()
        if kind == "note.replace":
            rows = [row | {"title": title_of(text or "")} for row in rows]
        if kind == "note.purge":
            rows[0]["revision"] = self.rows[note]["revision"]
        if kind == "note.restore":
            text = str(self.rows[note]["description"])
        body = json.dumps({"description": text}) if kind not in ("note.delete", "note.purge") else None
        shown = None if body is None else version
        self.commit(self.command(kind, note, shown, body=body, **members), *rows)

    def created(self, note: int, marker: str, **members: Any) -> Write:
        body = {"id": note, "description": marker, "version": 1}
        answer = self.answered(201, body=body, etag='"1"', location=f"/notes/{note}")
        write = self.written("create", None, marker, answer, **members)
        self.applied(note, 1, marker, "note.create")
        return write

    def replaced(self, note: int, version: int, marker: str, **members: Any) -> Write:
        write = self._shown_by("replace", note, version, marker, marker, **members)
        self.applied(note, version, marker)
        return write

    def touched(self, note: int, version: int, marker: str, **members: Any) -> Write:
        write = self._shown_by("touch", note, version, "nothing", marker, **members)
        self.applied(note, version, marker, "note.patch")
        return write

    def restored(self, note: int, version: int, text: str, **members: Any) -> Write:
        write = self._shown_by("restore", note, version, "r", text, **members)
        self.applied(note, version, text, "note.restore")
        return write

    def _shown_by(self, kind: str, note: int, version: int, marker: str, text: str, **members: Any) -> Write:
        """A write whose answer shows the note."""
        body = {"id": note, "description": text, "version": version}
        return self.written(kind, note, marker, self.answered(200, body=body, etag=f'"{version}"'), **members)

    def deleted(self, note: int, **members: Any) -> Write:
        write = self.written("delete", note, "e", self.answered(204), **members)
        self.applied(note, 0, None, "note.delete")
        return write

    def purged(self, note: int, **members: Any) -> Write:
        write = self.written("purge", note, "p", self.answered(204), **members)
        self.applied(note, 0, None, "note.purge")
        return write

    def several(self, *, marker: str = "b") -> Write:
        """Two new notes and a patch at once."""
        items = ((5, 1), (6, 1), (1, 2))
        shown = [{"status": 201 if new == 1 else 200, "id": note, "version": new} for note, new in items]
        write = self.written("batch", 1, marker, self.answered(200, body={"items": shown}))
        rows = [
            self.row("insert" if new == 1 else "update", note, new, f"{marker}#{index}")
            for index, (note, new) in enumerate(items)
        ]
        self.commit(self.command("notes.change", None, None, body=json.dumps({"items": shown})), *rows)
        return write

    def imported(self, *batches: Sequence[int], marker: str = "i") -> Write:
        """Notes that are imported by one command for each batch."""
        lines = sum(map(len, batches))
        end = {"end": {"complete": True, "imported": lines, "rejected": 0}}
        write = self.written("import", None, marker, self.answered(200, body=[end]), lines=lines)
        texts = (f"{marker}#{index}" for index in count())
        for notes in batches:
            shown = [{"status": 201, "id": note, "version": 1} for note in notes]
            rows = [self.row("insert", note, 1, text) for note, text in zip(notes, texts)]  # noqa: B905 - no end
            self.commit(self.command("notes.change", None, None, body=json.dumps({"items": shown})), *rows)
        return write

    def followed(self, *seen: Seen, how: str = "stream") -> Follow:
        follow = Follow(OWNER, how, list(seen), connected=[(0.0, 1000.0)])
        self.history.follows.append(follow)
        return follow

    def seen(self, note: int, revision: int, version: int | None, text: str | None, *, after: float = 0.0) -> Seen:
        """A change that arrives after the time of the last step."""
        return Seen(note, revision, version, text, self.now + 0.5 + after)

    def read(self, note: int, version: int | None, description: str = "a", **members: Any) -> Read:
        kinds = ("insert", "update")
        rows = (row for row in self.facts.audit if row["id"] == str(note) and row["kind"] in kinds)
        texts = (printed(row) for row in rows if row["version"] == version)
        known: dict[str, Any] = json.loads(next(texts, "{}"))
        body = known | {"description": description}
        answer = self.answered(200, etag=f'"{version}"', body=body) if version else self.answered(404)
        read = Read(OWNER, note, answer, **members)
        self.history.reads.append(read)
        return read

    def looked(
        self, what: str, *notes: int, status: int = 200, link: str = "", total: str = "", **members: Any
    ) -> Look:
        """A page with the notes as they are now."""
        texts = [self.text(note, in_trash=what == "trash") for note in notes]
        return self.shown(what, f"[{','.join(texts)}]", status=status, link=link, total=total, **members)

    def shown(
        self, what: str, body: str, *, status: int = 200, link: str = "", total: str = "", **members: Any
    ) -> Look:
        """A page with this body."""
        answer = self.answered(status, body=body.encode(), link=link or None, total=total or None)
        self.history.looks.append(look := Look(OWNER, what, answer, **members))
        return look

    def searched(self, text: str, *notes: int, total: int | None = None, **members: Any) -> Look:
        """The answer to a search."""
        found = {"matched": "words", "limited": False, "total": len(notes) if total is None else total}
        page = found | members | {"notes": [json.loads(self.text(note)) for note in notes]}
        return self.shown("search", json.dumps(page), text=text)

    def exported(self, *notes: int, revision: int | None = None) -> Look:
        """An export of the notes as they are now."""
        begin = {"export": {"revision": self.revision if revision is None else revision}}
        end = {"end": {"complete": True, "notes": len(notes)}}
        lines = [json.dumps(begin), *(self.text(note) for note in notes), json.dumps(end)]
        return self.shown("export", "\n".join(lines))

    def text(self, note: int, *, in_trash: bool = False) -> str:
        """The note as pages show it now."""
        if not in_trash:
            return printed(self.rows[note])
        [row] = [each for each in self.facts.tombstones if each["id"] == note]
        return f'{printed(row)[:-1]},"deleted_date":"{print_time(row["deleted_date"])}"}}'

    @property
    def found(self) -> list[str]:
        """The violations."""
        return violations(self.history, self.settled)

    @property
    def settled(self) -> Facts:
        """The same facts anew, since what is derived from facts is kept."""
        return replace(self.facts)


def good() -> Story:
    """A note is created."""
    story = Story()
    story.created(1, "a")
    return story


def promises(violations: list[str]) -> set[str]:
    """The promises that are broken."""
    return {violation.partition(":")[0] for violation in violations}
