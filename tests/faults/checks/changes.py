"""I12: who follows an owner's changes misses none, gets them in order, and soon."""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, pairwise

from tests.faults.checks.case import Case
from tests.faults.checks.case import describe as describe_write
from tests.faults.checks.owners import owners_of_notes
from tests.faults.history import Follow, History, Seen, Write
from tests.faults.nemesis import FAULTS
from tests.faults.states import NEVER, States

WAKE_UP_SECONDS, BEFORE_SECONDS = 3.0, 1.0
"""Within this time a stream has a change; one that hears nothing looks by itself after five seconds or more."""
UNNOTICED = {"commit-slow", "users-corrected", "unreadable", "tombstones-purged", "deleted-users-removed"}
"""Faults that must not delay what a stream gets once a write is answered."""
PURGES = "tombstones-purged"
KEEPS_CHANGES = FAULTS.keys() - {PURGES}


def followed(case: Case) -> Iterator[str]:
    """I12: each follower's copy is what the database has."""
    stored: dict[int, dict[int, tuple[int, str | None]]] = defaultdict(dict)
    for row in case.facts.notes:
        stored[row["owner_id"]][row["id"]] = (row["version"], row["description"])
    for follow in case.history.follows:
        who, notes, copy = describe(follow), stored[follow.owner], follow.copy
        for note in sorted(notes.keys() - copy.keys()):
            yield f"I12: {who} has missed note {note}"
        for note in sorted(copy.keys() - notes.keys()):
            yield f"I12: {who} has missed the deletion of note {note}"
        for note in sorted(copy.keys() & notes.keys()):
            if copy[note] != notes[note]:
                yield f"I12: {who} has {copy[note]} of note {note}, and the database {notes[note]}"


def followed_rightly(case: Case) -> Iterator[str]:
    """I10, I12: followers are answered, and see no other owner's notes."""
    owners = owners_of_notes(case)
    for follow in case.history.follows:
        who = describe(follow)
        for seen in chain(*follow.former, follow.seen):
            if owners.get(seen.note, follow.owner) != follow.owner:
                yield f"I10: {who} was shown note {seen.note}, which is another's"
        yield from (f"I12: {who} was answered {refusal}" for refusal in follow.refusals)


def followed_in_order(case: Case) -> Iterator[str]:
    """I12: changes come in the order of the revisions, each once."""
    for follow in case.history.follows:
        for together in (*follow.former, follow.seen):
            for before, after in pairwise(together):
                if (before.revision, before.note) >= (after.revision, after.note):
                    yield f"I12: {describe(follow)} got {after} after {before}"


def followed_as_committed(case: Case) -> Iterator[str]:
    """I12: each change is one that was committed in its revision, and none was passed over while it was the last."""
    changes = {owner: changes_of(states) for owner, states in case.states.items()}
    for follow in case.history.follows:
        committed = changes.get(follow.owner, {})
        for together in (*follow.former, follow.seen):
            yield from (f"I12: {describe(follow)} {each}" for each in passed_over(together, committed))


Changes = dict[tuple[int, int], tuple[int | None, float]]
"""By revision and note: the version, None if it is deleted; and when the note's next change can have been sent."""


def changes_of(states: States) -> Changes:
    """An owner's changes."""
    found: dict[tuple[int, int], tuple[int | None, float]] = {}
    purged: set[tuple[int, int]] = set()
    for transaction in states.transactions:
        inserted = {row["id"] for row in transaction.rows if row["kind"] == "insert"}
        for row in transaction.rows:
            place = row["revision"], int(row["id"])
            if row["kind"] in ("insert", "update"):
                found[place] = row["version"], transaction.sent
            elif row["kind"] == "buried":  # or its text is erased, which followers do not see
                found.setdefault(place, (None, transaction.sent))
            elif row["kind"] == "unburied" and row["id"] not in inserted:
                purged.add(place)
    next_sent: dict[int, float] = {}
    changes: Changes = {}
    for place in sorted(found, reverse=True):
        version, sent = found[place]
        changes[place] = version, NEVER if place in purged else next_sent.get(place[1], math.inf)
        next_sent[place[1]] = sent
    return changes


def passed_over(together: list[Seen], committed: Changes) -> Iterator[str]:
    """What is wrong with changes that a follower got one after the other."""
    seen = {(each.revision, each.note): each for each in together}
    for place, each in seen.items():
        if place not in committed:
            yield f"got {each}, which was never committed"
        elif committed[place][0] != each.version:
            yield f"got {each}, and it was version {committed[place][0]}"
    rest = iter(together)
    passed_by = next(rest, None)
    for place in sorted(committed):
        while passed_by and (passed_by.revision, passed_by.note) < place:
            passed_by = next(rest, None)
        if passed_by is None:
            return
        if place not in seen and committed[place][1] > passed_by.at:
            yield f"got {passed_by}, but not revision {place[0]} of note {place[1]}, which was not changed again before"


def purged(case: Case) -> Iterator[str]:
    """I12: whoever deletes a tombstone raises its owner's purged revision to that of the deletion, or restores it."""
    for states in case.facts.states.values():
        for transaction in states.transactions if not states.is_deleted else ():
            restored = {row["id"] for row in transaction.rows if row["kind"] == "insert"}
            for row in transaction.rows:
                is_purged = row["kind"] == "unburied" and row["id"] not in restored
                if is_purged and transaction.purged_revision < row["revision"]:
                    horizon = transaction.purged_revision
                    yield f"I12: the deletion of note {row['id']} in {row['revision']} is purged, and {horizon} is kept"


def begun_anew_for_a_reason(case: Case) -> Iterator[str]:
    """I12: changes are gone only if deletions were purged, or another server has taken over."""
    reasons = [each.began for each in case.history.disturbances if each.name not in KEEPS_CHANGES]
    for follow in case.history.follows:
        for at in follow.gone:
            if not any(began < at for began in reasons):
                yield f"I12: {describe(follow)} was answered 410 although nothing was purged"


def woken(case: Case) -> Iterator[str]:
    """I12: while nothing fails, a stream has a new note, or what became of it, soon after its write was answered."""
    history = case.history
    created: dict[int, list[Write]] = defaultdict(list)
    for each in case.writes:
        if each.write.kind == "create" and each.write.applied is not None:
            created[each.write.owner].append(each.write)
    for follow in (each for each in history.follows if each.how == "stream"):
        first = {seen.note: seen.at for seen in reversed([*chain(*follow.former), *follow.seen])}
        began_anew = max(follow.gone, default=-math.inf)
        for write in created[follow.owner]:
            yield from woken_by(write, follow, first, began_anew, history)


def woken_by(
    write: Write, follow: Follow, first: dict[int, float], began_anew: float, history: History
) -> Iterator[str]:
    """The violation of a stream that has a new note too late; the time the client was stalled is not counted."""
    at = write.applied or 0.0
    seen_at = first.get(write.subject or 0, math.inf)
    slack = WAKE_UP_SECONDS + history.stalls.within(at, min(seen_at, at + 2 * WAKE_UP_SECONDS))
    alone = write.asked - BEFORE_SECONDS, at + slack
    is_excused = began_anew > alone[0] or not is_connected(follow, *alone) or is_disturbed(history, *alone)
    if not is_excused and seen_at - at > slack:
        yield f"I12: {describe(follow)} got {describe_write(write)} {seen_at - at:.1f} s after its answer"


def is_connected(follow: Follow, began: float, ended: float) -> bool:
    """Whether the follower had one stream for the whole time."""
    return any(start <= began and ended <= end for start, end in follow.connected)


def is_disturbed(history: History, began: float, ended: float) -> bool:
    """Whether something failed that followers notice, or was still recovering."""
    recoveries = dict(enumerate(history.recoveries, start=1))
    for each in history.disturbances:
        if each.name not in UNNOTICED:
            recovery = recoveries.get(each.round, math.inf)
            if each.began < ended and (not each.ended or began < each.ended + recovery):
                return True
    return False


def describe(follow: Follow) -> str:
    """The follower, described for a violation."""
    return f"a follower of owner {follow.owner} ({follow.how})"
