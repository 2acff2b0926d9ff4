"""Decides each promise from what clients saw and what the database holds; a violation is a sentence that names one.

The database's evidence is its rows and an audit by triggers, which has the order of events.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import Any

from tests.faults.clients import POISON
from tests.faults.facts import Facts
from tests.faults.history import EVERYTHING, GONE, PATCHED, Answer, Follow, History, Write, text_of_item
from tests.faults.nemesis import FAULTS

SLACK_SECONDS = 1.0
"""Tolerance beyond the deadline that I7 promises."""
KEPT_ALIVE_SECONDS = 0.5
"""A shorter connection may have been closed while the request was in flight, which HTTP allows."""
WAKE_UP_SECONDS, BEFORE_SECONDS = 3.0, 1.0
"""Within this time a stream has a change; one that hears nothing looks by itself after five seconds or more."""
UNNOTICED = {"commit-slow", "users-corrected", "unreadable", "tombstones-purged", "deleted-users-removed"}
"""Faults that must not delay what a stream gets once a write is answered."""
PURGES = "tombstones-purged"
KEEPS_CHANGES = FAULTS.keys() - {PURGES}
LOSES_GATEWAY = {"gateway-kill", "gateway-frozen", "power-cut"}
READ, WRITTEN = {200, 404}, {200, 201, 202, 204, 404, 412}


def violations(history: History, facts: Facts) -> list[str]:
    """Every broken promise that the evidence shows."""
    of_writes = (
        accepted,
        present,
        once,
        unchanged,
        refused,
        truthful,
        conditional,
        the_same_again,
        rejected_rightly,
        polled,
    )
    of_all = (
        alike,
        truthful_of_several,
        answered_as_declared,
        read_truly,
        read_your_writes,
        in_order,
        numbered,
        in_time,
        owners_own,
        available,
        followed,
        followed_rightly,
        followed_in_order,
        begun_anew_for_a_reason,
        woken,
    )
    return [*history.complaints, *(each for check in (*of_writes, *of_all) for each in check(history, facts))]


def accepted(history: History, facts: Facts) -> Iterator[str]:
    """I1: every accepted write has an outcome, and every applied one has its effect."""
    by_marker, deleted = facts.by_marker(), facts.deleted()
    for write in history.writes:
        if write.accepted is not None and write.status in ("unknown", "refused"):
            yield f"I1: {describe(write)} was accepted but has no outcome"
        if write.status == "applied" and write.kind not in ("delete", "touch") and write.marker not in by_marker:
            yield f"I1: {describe(write)} was reported as applied, but no command has applied it"
        if write.status == "applied" and write.kind == "delete" and write.note not in deleted:
            yield f"I1: {describe(write)} was reported as applied, but no command has deleted the note"
        if write.status == "failed" and not write.marker.startswith(POISON):
            yield f"I1: {describe(write)} has failed although nothing is wrong with it"


def present(_: History, facts: Facts) -> Iterator[str]:
    """I1: each note is in the state that its commands produced."""
    stored, deleted, texts = {row["id"]: row for row in facts.notes}, facts.deleted(), facts.by_version()
    for note in {note for note, _ in texts}:
        if (note in stored) == (note in deleted):
            yield f"I1: note {note} is {'still' if note in stored else 'not'} there"
        if note in stored and stored[note]["description"] != texts.get((note, stored[note]["version"])):
            yield f"I1: note {note} holds another text than its last command has written"


def once(_: History, facts: Facts) -> Iterator[str]:
    """I2: no command acted twice, and nothing else acted."""
    for marker, commands in facts.by_marker().items():
        if len(commands) > 1:
            yield f"I2: {marker} was applied {len(commands)} times"
    inserted = Counter(row["description"] for row in facts.audit if row["kind"] == "insert" and row["description"])
    yield from (f"I2: {count} notes were made of {marker}" for marker, count in inserted.items() if count > 1)
    decisions = (row for row in facts.audit if row["kind"] == "command" and row["description"] != "failed")
    decided = Counter(row["id"] for row in decisions)
    yield from (f"I2: command {command} was decided {count} times" for command, count in decided.items() if count > 1)
    versions: dict[int, list[int]] = defaultdict(list)
    for note, version in facts.makers():
        versions[note].append(version)
    stored = {row["id"]: row["version"] for row in facts.notes}
    for note, present in versions.items():
        if sorted(present) != list(range(1, len(present) + 1)):
            yield f"I2: note {note} has the versions {sorted(present)}"
        if note in stored and stored[note] != max(present):
            yield f"I2: note {note} is in version {stored[note]}, its commands made {max(present)}"
    yield from (f"I2: no command has made note {note}" for note in stored if note not in versions)


def unchanged(history: History, facts: Facts) -> Iterator[str]:
    """I2: only a write without a change leaves its note untouched, and no version is written twice."""
    touched = Counter(write.note for write in history.writes if write.kind == "touch" and write.status != "rejected")
    for note, count in Counter(row["note_id"] for row in facts.unchanging()).items():
        if count > touched[note]:
            yield f"I2: {count} commands have left note {note} as it was, and {touched[note]} were to"
    texts = facts.by_version()
    for row in facts.unchanging():
        note, version, text = row["note_id"], row["note_version"], row["marker"]
        if text != texts[note, version]:
            yield f"I2: version {version} of note {note} was left as {text}, which it is not"
    written = Counter((row["id"], row["version"]) for row in facts.audit if row["kind"] == "update")
    yield from (f"I2: version {each} was written {count} times" for each, count in written.items() if count > 1)


def refused(history: History, facts: Facts) -> Iterator[str]:
    """I3: refused and rejected writes have no effect."""
    by_marker = facts.by_marker()
    for write in history.writes:
        if write.status in ("refused", "rejected", "failed") and write.marker in by_marker:
            yield f"I3: {describe(write)} was {write.status} but is applied"
    deletes: dict[int | None, list[Write]] = defaultdict(list)
    for write in history.writes:
        if write.kind == "delete":
            deletes[write.note].append(write)
    for note in facts.deleted():
        if not any(write.status in ("applied", "unknown") for write in deletes[note]):
            yield f"I3: note {note} is deleted, and every delete was refused or rejected"
        if sum(write.status == "applied" for write in deletes[note]) > 1:
            yield f"I4: several deletes of note {note} are said to be applied"


def truthful(history: History, facts: Facts) -> Iterator[str]:
    """I4: the outcome that a client saw is the committed one, of its own request."""
    versions = facts.by_version()
    for write in history.writes:
        if write.status == "applied" and write.kind not in ("delete", "batch"):
            _, body, version = write.original
            text = versions.get((write.note or 0, version or 0)) if write.kind == "touch" else write.marker
            if body and (body.get("description", body.get("name")) != text or body.get("version") != version):
                yield f"I4: {describe(write)} was answered {body}, version {version}"
            if body and version and versions.get((body["id"], version)) != text:
                yield f"I4: {describe(write)} got version {version} of note {body['id']}, which is another's"
    for answer in history.answers():
        if answer.code == "internal_error":
            yield f"I4: a gateway answered internal_error: {answer.body}"


def conditional(history: History, facts: Facts) -> Iterator[str]:
    """I4: a conditional write was applied to exactly the version that it named, or rejected because of another one."""
    last: dict[int, int] = defaultdict(int)
    for row in facts.applied():
        last[row["note_id"]] = max(last[row["note_id"]], row["note_version"] or 0)
    deleted = facts.deleted()
    for write in history.writes:
        if write.condition is None or write.is_trespass or write.status not in ("applied", "rejected"):
            continue
        status, _, made = write.original
        made = dict(write.made).get(write.note or 0, made) if write.kind == "batch" else made
        before = last[write.note or 0] if write.kind == "delete" else (made or 0) - (write.kind != "touch")
        if write.status == "applied" and made and before != write.condition:
            yield f"I4: {describe(write)} asked for version {write.condition} and was applied to another"
        if status == 412 and write.condition == made:
            yield f"I4: {describe(write)} asked for version {made}, but was answered 412 with that version"
        if status == 412 and write.condition == last[write.note or 0] and write.note not in deleted:
            yield f"I4: {describe(write)} asked for version {write.condition}, which is current, but was answered 412"


def the_same_again(history: History, _: Facts) -> Iterator[str]:
    """I2: a write repeated with its key gets the same answer."""
    for write in history.writes:
        answers = {(each.status // 100, each.code, each.version) for each in write.attempts if each.is_outcome}
        if write.key and len(answers) > 1:
            yield f"I2: {describe(write)} was repeated with its key and got different answers: {answers}"


def alike(history: History, _: Facts) -> Iterator[str]:
    """I4: every answer about a write's outcome is the same, whenever and wherever it was requested."""
    for write in history.writes:
        statuses = {status // 100 for status, _ in write.results}
        bodies = [body for status, body in write.results if status // 100 == 2 and body]  # or a short one is preferred
        if len(statuses) > 1 or len({str(body.get("items", body.get("id"))) for body in bodies}) > 1:
            yield f"I4: {describe(write)} has contradictory answers: {write.results}"


def rejected_rightly(history: History, facts: Facts) -> Iterator[str]:
    """I4: every rejection has a valid reason; another owner's note is not found."""
    deleted = facts.deleted()
    for write in history.writes:
        if write.status == "rejected":
            expected = {404} if write.is_trespass or write.note in deleted else set()
            expected |= {412} if write.condition and not write.is_trespass else set()
            if write.original[0] not in expected:
                yield f"I{10 if write.is_trespass else 4}: {describe(write)} was answered {write.original[0]}"


def answered_as_declared(history: History, _: Facts) -> Iterator[str]:
    """I4: a read of an own note answers the note, that it is gone, or that Postgres is unavailable."""
    own = [read.answer for read in history.reads if not read.is_trespass]
    for answer in own:
        if answer.status not in (0, 200, 404, 503):
            yield f"I4: a read of one's own was answered {answer.status} {answer.code}"
    for write in history.writes:
        for poll in write.polls:
            if poll.status not in (0, 200, 503):
                yield f"I4: {describe(write)} was answered {poll.status} {poll.code} at its command's URL"


def truthful_of_several(history: History, facts: Facts) -> Iterator[str]:
    """I4: the same for several writes at once, item by item."""
    versions = facts.by_version()
    for write in history.writes:
        if write.status != "applied" or write.kind != "batch":
            continue
        if write.original[1] and len(write.made) != PATCHED + 1:
            yield f"I4: {describe(write)} was answered {write.original[1]}"
        for index, item in enumerate(write.made):
            if versions.get(item) != text_of_item(write.marker, index):
                yield f"I4: {describe(write)} got note {item[0]}, version {item[1]}, which is another's"


def read_truly(history: History, facts: Facts) -> Iterator[str]:
    """I4: every version that was read was committed."""
    versions = facts.by_version()
    for read in history.reads:
        if read.answer.status == 200 and read.note:  # not an empty list
            description = read.answer.body["description"]
            if versions.get((read.note, read.answer.version or 0)) != description:
                yield f"I4: note {read.note} was read as {description} in version {read.answer.version}"


def polled(history: History, facts: Facts) -> Iterator[str]:
    """I4, at the commands' URLs."""
    statuses = {row["id"]: row["status"] for row in facts.commands}
    for write in history.writes:
        for poll in write.polls:
            if poll.status == 200 and poll.body["answer"]:
                committed = statuses.get(poll.body["id"])
                if poll.body["status"] != committed:
                    yield f"I4: {describe(write)} was reported as {poll.body['status']}, but is {committed}"


def read_your_writes(history: History, _: Facts) -> Iterator[str]:
    """I5: a read sent after an answer sees at least the state of that answer."""
    known: dict[int, list[tuple[float, int]]] = defaultdict(list)
    first_delete = first_deletes(history)
    for write in history.writes:
        if write.applied is not None and not write.is_trespass:
            for note, version in write.made:
                known[note].append((write.applied, version))
    for read in history.reads:
        if read.is_trespass or not read.note or read.answer.status not in (200, 404):  # no note: an empty list
            continue
        seen = read.answer.version or 0 if read.answer.status == 200 else GONE
        least = max((version for time, version in known[read.note] if time < read.answer.asked), default=0)
        if seen < least:
            yield f"I5: note {read.note} was read in version {seen} after version {least} had been answered"
        if seen == GONE and read.answer.answered < first_delete.get(read.note, float("inf")):
            yield f"I5: note {read.note} was not found, but had not been deleted"


def first_deletes(history: History) -> dict[int | None, float]:
    """The time of the first request to delete each note."""
    first: dict[int | None, float] = {}
    for write in history.writes:
        if write.kind == "delete" and write.status != "rejected":
            first[write.note] = min(write.asked, first.get(write.note, float("inf")))
    return first


def numbered(_: History, facts: Facts) -> Iterator[str]:
    """I6: every decision raises its owner's revision, and what it writes has a later one than everything before."""
    for owner in facts.owners:
        if owner["revision"] < owner["decided"]:
            yield f"I6: owner {owner['id']} is in revision {owner['revision']} after {owner['decided']} decisions"
    by_owner, departed = defaultdict[int, list[Any]](list), facts.departed()
    for row in facts.audit:
        if row.get("revision") is not None and row["kind"] != "delete" and row["owner_id"] not in departed:
            by_owner[row["owner_id"]].append(row)
    yield from chain(*map(outdated, by_owner.values()))


def outdated(rows: Iterable[Any]) -> Iterator[str]:
    """I6: an owner's rows written with a revision of an earlier transaction, or with a lower one."""
    before = 0
    for _transaction, written in groupby(rows, key=lambda row: row["transaction"]):
        together = list(written)
        for row in together:
            if row["revision"] <= before:
                yield f"I6: {row['kind']} {row['id']} has revision {row['revision']}, and its owner had {before} before"
        before = max(before, *(row["revision"] for row in together))


def in_order(history: History, facts: Facts) -> Iterator[str]:
    """I6: a write sent after another write's 2xx is applied after it, if both have the same owner."""
    place_of = facts.places()
    by_id, by_marker = {row["id"]: row for row in facts.commands}, facts.by_marker()
    deletes = {row["note_id"]: row for row in facts.applied() if row["type"] == "note.delete"}
    placed: dict[int, list[Placed]] = defaultdict(list)
    for write in history.writes:
        marker = text_of_item(write.marker, PATCHED) if write.kind == "batch" else write.marker
        row = next(iter(by_marker.get(marker, ())), None) or by_id.get(write.command or "")
        if write.kind == "delete" and write.status == "applied":
            row = deletes.get(write.note)
        if row and row["id"] in place_of:
            version = GONE if row["type"] == "note.delete" else row["note_version"] or 0
            has_order = row["status"] == "applied" and write.kind != "touch"
            placed[write.owner].append(Placed(place_of[row["id"]], version, write.note if has_order else None, write))
    for writes in placed.values():
        yield from overtaken(writes)


@dataclass(frozen=True)
class Placed:
    """Where a write was decided: its transaction, its note, and the version that it produced, if any."""

    place: int
    version: int
    note: int | None
    write: Write


def overtaken(placed: Iterable[Placed]) -> Iterator[str]:
    """An owner's writes that were decided before others which had been accepted before these were sent.

    Within a transaction only writes to the same note have an observable order.
    """
    earliest, latest_note = float("inf"), dict[tuple[int, int | None], float]()
    pending, place = float("inf"), None
    for each in sorted(placed, key=lambda each: (each.place, each.version), reverse=True):
        if each.place != place:
            earliest, place = min(earliest, pending), each.place
        if min(earliest, latest_note.get((each.place, each.note), float("inf"))) < each.write.asked:
            yield f"I6: {describe(each.write)} was decided before a write that had been accepted before it was sent"
        done = each.write.accepted if each.write.accepted is not None else float("inf")
        pending = min(pending, done)
        if each.note:
            latest_note[each.place, each.note] = min(done, latest_note.get((each.place, each.note), float("inf")))


def in_time(history: History, _: Facts) -> Iterator[str]:
    """I7: every request is answered within its deadline and a second, unless its gateway is killed or frozen."""
    lost = [each for each in history.disturbances if each.name in LOSES_GATEWAY]
    for answer in history.answers():
        took = answer.answered - answer.asked - history.lag_seconds
        if (answer.status or answer.error == "TimeoutError") and took > answer.limit_seconds + SLACK_SECONDS:
            what = answer.code or answer.status or answer.error
            found = f"I7: {what} took {took:.1f} s, {answer.limit_seconds:.1f} s were promised"
        elif answer.is_sent and not answer.status and answer.error != "TimeoutError" and took > KEPT_ALIVE_SECONDS:
            found = f"I7: no answer after {took:.1f} s: {answer.error}"
        else:
            continue
        its_own = (each for each in lost if each.target in (f"gateway-{answer.gateway + 1}", EVERYTHING))
        if not any(each.began < answer.answered and answer.asked < each.ended for each in its_own):
            yield found


def owners_own(history: History, facts: Facts) -> Iterator[str]:
    """I10: no owner reads or changes another's notes."""
    owners = {row["note_id"]: row["owner_id"] for row in facts.applied() if row["type"] == "note.create"}
    for row in facts.applied():
        if owners.get(row["note_id"], row["owner_id"]) != row["owner_id"]:
            yield f"I10: owner {row['owner_id']} has changed note {row['note_id']}, which is another's"
    for write in history.writes:
        if write.is_trespass and write.status == "applied":
            yield f"I10: {describe(write)} changed another owner's note"
    for read in history.reads:
        if read.is_trespass and read.answer.status not in (0, 404, 503):
            yield f"I10: another owner's note {read.note} was answered {read.answer.status}"
        if read.answer.status == 200 and owners.get(read.note, read.owner) != read.owner:
            yield f"I10: owner {read.owner} was shown note {read.note}, which is another's"


def available(history: History, _: Facts) -> Iterator[str]:
    """I11: reads work while the broker is down, and writes are accepted while Postgres is."""
    reads = [read.answer for read in history.reads]
    writes = [answer for write in history.writes for answer in write.attempts]
    for server, answers, good in (("broker", reads, READ), ("postgres", writes, WRITTEN)):
        for began, ended in alone(history, server):
            during = (each for each in answers if began < each.asked and each.answered < ended)
            yield from (f"I11: {each.code} while {server} was away" for each in during if each.status not in good)


def followed(history: History, facts: Facts) -> Iterator[str]:
    """I12: each follower's copy is what the database has."""
    stored: dict[int, dict[int, tuple[int, str | None]]] = defaultdict(dict)
    for row in facts.notes:
        stored[row["owner_id"]][row["id"]] = (row["version"], row["description"])
    for follow in history.follows:
        who, notes, copy = describe_follow(follow), stored[follow.owner], follow.copy
        for note in sorted(notes.keys() - copy.keys()):
            yield f"I12: {who} has missed note {note}"
        for note in sorted(copy.keys() - notes.keys()):
            yield f"I12: {who} has missed the deletion of note {note}"
        for note in sorted(copy.keys() & notes.keys()):
            if copy[note] != notes[note]:
                yield f"I12: {who} has {copy[note]} of note {note}, and the database {notes[note]}"


def followed_rightly(history: History, facts: Facts) -> Iterator[str]:
    """I10, I12: followers are answered, and see no other owner's notes."""
    owners = {row["note_id"]: row["owner_id"] for row in facts.applied() if row["type"] == "note.create"}
    for follow in history.follows:
        who = describe_follow(follow)
        for seen in chain(*follow.former, follow.seen):
            if owners.get(seen.note, follow.owner) != follow.owner:
                yield f"I10: {who} was shown note {seen.note}, which is another's"
        yield from (f"I12: {who} was answered {refusal}" for refusal in follow.refusals)


def followed_in_order(history: History, _: Facts) -> Iterator[str]:
    """I12: changes come in the order of the revisions, each once."""
    for follow in history.follows:
        for together in (*follow.former, follow.seen):
            for before, after in pairwise(together):
                if (before.revision, before.note) >= (after.revision, after.note):
                    yield f"I12: {describe_follow(follow)} got {after} after {before}"


def begun_anew_for_a_reason(history: History, _: Facts) -> Iterator[str]:
    """I12: changes are gone only if deletions were purged, or another server has taken over."""
    reasons = [each.began for each in history.disturbances if each.name not in KEEPS_CHANGES]
    for follow in history.follows:
        for at in follow.gone:
            if not any(began < at for began in reasons):
                yield f"I12: {describe_follow(follow)} was answered 410 although nothing was purged"


def woken(history: History, _: Facts) -> Iterator[str]:
    """I12: while nothing fails, a stream has a new note, or what became of it, soon after its write was answered."""
    created: dict[int, list[Write]] = defaultdict(list)
    for write in history.writes:
        if write.kind == "create" and write.applied is not None:
            created[write.owner].append(write)
    slack = WAKE_UP_SECONDS + history.lag_seconds
    for follow in history.follows:
        first = {seen.note: seen.at for seen in reversed([*chain(*follow.former), *follow.seen])}
        began_anew = max(follow.gone, default=-math.inf)
        for write in created[follow.owner]:
            at = write.applied or 0.0
            alone = write.asked - BEFORE_SECONDS, at + slack
            if began_anew > alone[0] or not is_connected(follow, *alone) or is_disturbed(history, *alone):
                continue
            if (late := first.get(write.subject or 0, math.inf) - at) > slack:
                yield f"I12: {describe_follow(follow)} got {describe(write)} {late:.1f} s after its answer"


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


def describe_follow(follow: Follow) -> str:
    """The follower, described for a violation."""
    return f"a follower of owner {follow.owner} ({follow.how})"


def alone(history: History, server: str) -> Iterator[tuple[float, float]]:
    """The times at which this server was down and nothing else had failed recently."""
    rounds = Counter(each.round for each in history.disturbances)
    for each in history.disturbances:
        if each.name in (f"{server}-kill", f"{server}-pause", f"{server}-restart") and rounds[each.round] == 1:
            yield each.began, each.ended


def describe(write: Write) -> str:
    """The write, described for a violation."""
    note = f" of note {write.note}" if write.note else ""
    return f"{write.kind}{note} by owner {write.owner} ({write.marker})"


def kinds(answers: Iterable[Answer]) -> Counter[str]:
    """How often each kind of answer in the table of statuses was seen."""
    counted: Counter[str] = Counter()
    for answer in answers:
        if answer.status:
            known = answer.status in (503, 504, 500) or answer.status >= 400
            counted[f"{answer.status} {answer.code}" if known and answer.code else str(answer.status)] += 1
    return counted
