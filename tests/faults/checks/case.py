"""The evidence of a run: what clients saw, what the database holds, and which command each write has become."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gateway.api.transfer import CHUNK_LINES
from gateway.http.idempotency import build_command_id
from tests.faults.checks.replay import Replay
from tests.faults.facts import Facts
from tests.faults.history import SEVERAL, TEXTLESS, Answer, History, Look, Write
from tests.faults.keyed_writes import TYPES
from tests.faults.states import States

Command = dict[str, Any]
ANSWERED = (200, 304)


@dataclass
class Case:
    """What the rules judge."""

    history: History
    facts: Facts

    @cached_property
    def writes(self) -> list["Judged"]:
        """All writes, each with its status and its command in the database."""
        judged = [Judged(write, write.status, self._commands_of(write)) for write in self.history.writes]
        self._match_the_rest(judged)
        return judged

    def _commands_of(self, write: Write) -> list[Command]:
        """The commands that the write has become; several only of an import."""
        found = [self.facts.by_id[each] for each in ids_of(write) if each in self.facts.by_id]
        if found or write.is_reuse or write.kind in TEXTLESS:
            return found
        return [self.facts.by_id[row["id"]] for row in self._by_text.get(write.marker, ())][:1]

    @cached_property
    def _by_text(self) -> dict[str, list[Command]]:
        """Commands by the texts of single writes, and by the common part of the texts of several."""
        found: dict[str, list[Command]] = defaultdict(list)
        for marker, commands in self.facts.by_marker.items():
            found[marker.partition("#")[0]] += commands
        return found

    def _match_the_rest(self, judged: "list[Judged]") -> None:
        """Match applied writes without a text or a known id where there is no choice."""
        taken = {command["id"] for each in judged for command in each.commands}
        free: dict[tuple[Any, ...], list[Command]] = defaultdict(list)
        for command in self.facts.by_id.values():
            if command["id"] not in taken and command["status"] == "applied":
                free[command["owner_id"], command["type"], command["note_id"]].append(command)
        left: dict[tuple[Any, ...], list[Judged]] = defaultdict(list)
        for each in judged:
            write = each.write
            if each.status in ("applied", "unknown") and not each.commands and write.kind in TEXTLESS:
                left[write.owner, TYPES[write.kind], write.note].append(each)
        for what, writes in left.items():
            if len(writes) == len(free[what]) == 1:
                writes[0].commands = free[what]

    @cached_property
    def replay(self) -> Replay:
        """The commands, one after the other."""
        return Replay(self.facts)

    def before(self, command: Command, note: int | None) -> int | None:
        """The version of the command's note when it was decided, 0 if there was none; None if it is not known."""
        return self.replay.before.get((command["id"], note or 0))

    def statuses(self, command_id: str) -> list[str]:
        """What the command was decided to be: failed at first, perhaps, and something else by a replay."""
        return [row["status"] for row in self.facts.decisions.get(command_id, ())]

    def is_replayed(self, judged: "Judged") -> bool:
        """Whether an operator has replayed or discarded the write after it had failed."""
        return any(len(self.facts.decisions[command["id"]]) > 1 for command in judged.commands)

    @cached_property
    def states(self) -> dict[int, States]:
        """Each owner's states, with the times at which they can have been seen."""
        states, asked = self.facts.states, dict[str, float]()
        for each in self.writes:
            for command in each.commands if each.write.attempts else ():
                asked[command["id"]] = min(each.write.asked, asked.get(command["id"], each.write.asked))
        for command in self.facts.by_id.values():
            if (owner := states.get(command["owner_id"])) and (state := owner.index.get(command["transaction"])):
                made = owner.transactions[state - 1]
                made.sent = max(made.sent, asked.get(command["id"], made.sent))
        for owner_id, at, state in self._shown(states):
            states[owner_id].learn(at, state)
        for owner in states.values():
            owner.conclude()
        return states

    def _shown(self, states: dict[int, States]) -> Iterator[tuple[int, float, int]]:
        """The owner, the time and the oldest possible state of each answer."""
        for each in self.writes:
            decided = each.write.decided
            for command in each.commands if decided else ():
                if command["owner_id"] in states and command["status"] == each.status and decided:
                    state = states[command["owner_id"]].index.get(command["transaction"])
                    yield command["owner_id"], decided.answered, state or 0
        for read in self.history.reads:
            owner = states.get(read.owner)
            if owner and read.note and not read.is_trespass and read.answer.status in ANSWERED:
                known = owner.buried if read.is_in_trash else owner.made
                yield read.owner, read.answer.answered, known.get((read.note, read.answer.version or 0), 0)
        for look in self.history.looks:
            owner = states.get(look.owner)
            if owner and look.answer.status in ANSWERED and look.what != "versions":
                known = owner.buried if look.what == "trash" else owner.made
                seen = (known.get((note["id"], note["version"]), 0) for note in notes_of(look))
                yield look.owner, look.answer.answered, max(seen, default=0)


@dataclass(slots=True)
class Judged:
    """A write, what its client knows about it in the end, and its commands in the database, if they can be told."""

    write: Write
    status: str
    commands: list[Command]

    @property
    def command(self) -> Command | None:
        """The command, or the first of several."""
        return self.commands[0] if self.commands else None


def ids_of(write: Write) -> Iterable[str]:
    """The ids of the commands that the write becomes, as far as they can be told from its key or its answers."""
    if write.is_reuse:
        return ()
    if not write.key or write.kind not in TYPES:
        return (write.command,) if write.command else ()
    type_name = TYPES[write.kind]
    if write.kind == "import":
        first_lines = range(1, write.lines + 1, CHUNK_LINES)
        return [str(build_command_id(write.owner, type_name, line, write.key)) for line in first_lines]
    target = None if write.kind in SEVERAL else write.note
    return (str(build_command_id(write.owner, type_name, target, write.key)),)


def notes_of(look: Look) -> list[dict[str, Any]]:
    """The notes on a page, or in a complete export."""
    if look.what == "export":
        lines = [json.loads(line) for line in look.answer.body.splitlines()]
        return lines[1:-1] if is_complete(lines) else []
    page = json.loads(look.answer.body)
    notes: list[dict[str, Any]] = page["notes"] if look.what == "search" else page
    return notes


def is_complete(lines: list[dict[str, Any]]) -> bool:
    """Whether an export's lines are all of it."""
    return bool(lines) and bool(lines[-1].get("end", {}).get("complete"))


def describe(write: Write) -> str:
    """The write, described for a violation."""
    note = f" of note {write.note}" if write.note else ""
    return f"{write.kind}{note} by owner {write.owner} ({write.marker})"


def kind_of(answer: Answer) -> str:
    """How the table of answers names it."""
    known = answer.status in (503, 504, 500) or answer.status >= 400 or answer.code
    return f"{answer.status} {answer.code}" if known and answer.code else str(answer.status)
