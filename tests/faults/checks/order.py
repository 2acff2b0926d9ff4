"""I6: writes are applied in the order in which they were accepted, and each owner's revisions count them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby
from typing import Any

from tests.faults.checks.case import Case, describe
from tests.faults.history import Write
from tests.faults.states import States

DISCARDED = 410
"""How a dead letter is answered that an operator has discarded."""


def numbered(case: Case) -> Iterator[str]:
    """I6: every decision raises its owner's revision, and what it writes has a later one than everything before."""
    for owner in case.facts.owners:
        if owner["revision"] < owner["decided"]:
            yield f"I6: owner {owner['id']} is in revision {owner['revision']} after {owner['decided']} decisions"
    decided, discarded = Counter[tuple[int, int]](), set[tuple[int, int]]()
    for row in chain(*case.facts.decisions.values()):
        if row["http_status"] == DISCARDED:
            discarded.add((row["owner_id"], row["transaction"]))  # an operator raises it once for all of them
        elif row["type"] != "user.register":
            decided[row["owner_id"], row["transaction"]] += 1
    decided.update(discarded)
    for states in case.facts.states.values():
        yield from outdated(states)
        yield from uncounted(states, decided)


def outdated(states: States) -> Iterator[str]:
    """I6: an owner's rows written with a revision of an earlier transaction, or with a lower one."""
    before = 0
    for transaction in states.transactions:
        raised = before
        for row in transaction.rows:
            if row["revision"] is None or row["kind"] == "delete" or not is_numbered(row):
                continue
            if row["revision"] <= before:
                what = f"{row['kind']} {row['id']} has revision {row['revision']}"
                yield f"I6: in transaction {transaction.id}, {what}, and owner {states.owner} had {before} before"
            raised = max(raised, row["revision"])
        before = raised


def is_numbered(row: Any) -> bool:
    """Whether a row gets its revision when it is written; a tombstone whose text is erased keeps its own."""
    return row["kind"] != "unburied" and not (row["kind"] == "buried" and row["title"] is None)


def uncounted(states: States, decided: Counter[tuple[int, int]]) -> Iterator[str]:
    """I6: a transaction that has raised its owner's revision by less than the number of its decisions."""
    before = 0
    for transaction in states.transactions:
        count = decided[states.owner, transaction.id]
        if transaction.revision < before + count and not states.is_deleted:
            raised = f"owner {states.owner} from {before} to {transaction.revision}"
            yield f"I6: in transaction {transaction.id}, {count} decisions have raised {raised}"
        before = transaction.revision


def in_order(case: Case) -> Iterator[str]:
    """I6: a write sent after another write's 2xx is applied after it, if both have the same owner."""
    placed: dict[int, list[Placed]] = defaultdict(list)
    for each in case.writes:
        write, command = each.write, each.commands[-1] if each.commands else None
        if not command or not write.attempts or len(case.facts.decisions.get(command["id"], ())) > 1:
            continue  # a replay takes its place at the time of the replay
        note = write.note if command["status"] == "applied" else None
        placed[write.owner].append(Placed(command["place"], command["decided"], note, write))
    for writes in placed.values():
        yield from overtaken(writes)


@dataclass(frozen=True)
class Placed:
    """When a write was decided: the place of its transaction, the time in it, and the note that it has changed."""

    place: int
    decided: datetime
    note: int | None
    write: Write


def overtaken(placed: Iterable[Placed]) -> Iterator[str]:
    """An owner's writes that were decided before others which had been accepted before these were sent.

    Within a transaction only writes to the same note have an observable order.
    """
    earliest = float("inf")
    for _, together in groupby(sorted(placed, key=lambda each: each.place, reverse=True), key=lambda each: each.place):
        writes, latest_note = sorted(together, key=lambda each: each.decided, reverse=True), dict[int, float]()
        done = earliest
        for each in writes:
            if min(earliest, latest_note.get(each.note or 0, float("inf"))) < each.write.asked:
                yield f"I6: {describe(each.write)} was decided before a write that had been accepted before it was sent"
            accepted = each.write.accepted if each.write.accepted is not None else float("inf")
            done = min(done, accepted)
            if each.note:
                latest_note[each.note] = min(accepted, latest_note.get(each.note, float("inf")))
        earliest = done
