"""Makes each owner's notes of the commands, one after the other, and compares them with what was committed."""

from collections.abc import Iterator
from typing import Any

from tests.faults.facts import Facts
from tests.faults.history import title_of
from tests.faults.states import States, Transaction

ON_TRASH = {"note.restore", "note.purge"}


class Replay:
    """Every command in the order of the decisions."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.before: dict[tuple[str, int], int] = {}
        """The version of its note before each command, in the trash if the command is about a deleted note; or 0."""
        self.complaints = [each for owner in facts.states.values() for each in OwnersReplay(self, owner).run()]


class OwnersReplay:
    """One owner's notes and trash, each with its version: as the commands make them, and as committed."""

    def __init__(self, replay: Replay, owner: States) -> None:
        self._replay = replay
        self._owner = owner
        self._made: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._committed: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._texts: dict[int, str] = {}
        self._titles: dict[int, str] = {}

    def run(self) -> Iterator[str]:
        """Apply all transactions."""
        for transaction in self._owner.transactions:
            complaints = [*self._apply(transaction)]
            if not self._owner.is_deleted:
                yield from complaints

    def _apply(self, transaction: Transaction) -> Iterator[str]:
        """Apply the transaction's commands, and compare the result with what it left."""
        commands = self._replay.facts.in_order.get(transaction.id, ())
        mine = [each for each in commands if each["owner_id"] == self._owner.owner and each["note_id"]]
        for command in mine:
            yield from self._decide(command, command["note_id"])
        rows = [row for row in transaction.rows if row["kind"] != "owner"]
        for row in rows:
            self._commit(row)
        touched = {command["note_id"] for command in mine}
        for note in sorted(touched | {int(row["id"]) for row in rows}):
            yield from self._compare(transaction, note, is_touched=note in touched)
        for row in rows:
            if int(row["id"]) in touched and row["title"] is not None and row["kind"] not in ("delete", "unburied"):
                yield from self._compare_text(int(row["id"]), row)

    def _compare(self, transaction: Transaction, note: int, *, is_touched: bool) -> Iterator[str]:
        """Compare what the commands make with what was committed, which counts from then on."""
        for is_trash, (made, committed) in enumerate(zip(self._made, self._committed, strict=True)):
            if made.get(note) != committed.get(note) and (is_touched or not is_trash):  # an operator may erase texts
                what = f"{'deleted ' if is_trash else ''}note {note} in version {committed.get(note)}"
                yield f"I2: transaction {transaction.id} left {what}, and its commands make {made.get(note)}"
            made.pop(note, None)
            if note in committed:
                made[note] = committed[note]

    def _decide(self, command: dict[str, Any], note: int) -> Iterator[str]:
        """Judge a decision by the versions before it, and keep its effect."""
        kind, version = command["type"], command["note_version"]
        (notes, trash), is_on_trash = self._made, command["type"] in ON_TRASH
        before = (trash if is_on_trash else notes).get(note, 0)
        self._replay.before.setdefault((command["id"], note), before)
        if command["status"] != "applied":
            return
        allowed = {
            "note.create": (1,),
            "note.delete": (None,),
            "note.restore": (before + 1,),
            "note.purge": (None,),
        }.get(kind, (before, before + 1))
        is_there = bool(before) != (kind == "note.create")
        if not is_there or version not in allowed:
            what = f"{kind} was applied to version {before} of note {note}"
            yield f"I2: in transaction {command['transaction']}, {what}, and made {version}"
        if kind == "note.purge":
            trash.pop(note, None)
        elif kind == "note.delete":
            trash[note] = notes.pop(note, 0)
        else:
            if kind != "note.restore" and notes.get(note) != version:
                self._keep_text(command, note)
            notes[note] = version
            trash.pop(note, None)

    def _keep_text(self, command: dict[str, Any], note: int) -> None:
        """Keep the text that the command writes; that of a probe, which no client has sent, is empty."""
        self._texts[note] = command["marker"] or ""
        if command["type"] in ("note.create", "note.replace") and command["marker"]:
            self._titles[note] = title_of(command["marker"])

    def _commit(self, row: Any) -> None:
        note, is_trash = int(row["id"]), row["kind"] in ("buried", "unburied")
        if row["kind"] in ("delete", "unburied") or row["title"] is None:
            self._committed[is_trash].pop(note, None)
        else:
            self._committed[is_trash][note] = row["version"]

    def _compare_text(self, note: int, row: Any) -> Iterator[str]:
        text, title = self._texts.get(note, row["description"]), self._titles.get(note, row["title"])
        if row["description"] != text:
            yield f"I1: note {note} was left with the text {row['description']} in version {row['version']}, not {text}"
        if row["title"] != title:
            yield f"I1: note {note} was left with the title {row['title']} in version {row['version']}, not {title}"
