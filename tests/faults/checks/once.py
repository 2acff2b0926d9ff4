"""I2: no command acts twice, and nothing else acts: the commands, one after the other, make exactly what is stored."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from tests.faults.checks.case import Case, describe

FINAL = {"applied", "rejected"}


def once(case: Case) -> Iterator[str]:
    """I2: no command acted twice."""
    for marker, commands in case.facts.by_marker.items():
        if len(commands) > 1:
            yield f"I2: {marker} was applied {len(commands)} times"
    made = (row["description"] for row in case.facts.audit if row["kind"] == "insert" and row["version"] == 1)
    inserted = Counter(text for text in made if text)
    yield from (f"I2: {count} notes were made of {marker}" for marker, count in inserted.items() if count > 1)
    for command, rows in case.facts.decisions.items():
        if any(before["status"] in FINAL for before, _ in pairwise(rows)):
            yield f"I2: command {command} was decided {len(rows)} times"
    written = Counter((row["id"], row["version"]) for row in case.facts.audit if row["kind"] == "update")
    yield from (f"I2: version {each} was written {count} times" for each, count in written.items() if count > 1)


def unchanged(case: Case) -> Iterator[str]:
    """I2: only a write without a change leaves its note untouched."""
    touches = (each.write.note for each in case.writes if each.write.kind == "touch" and each.status != "rejected")
    touched, owners = Counter(touches), {each.write.owner for each in case.writes}
    left = [row for row in case.facts.unchanging if row["owner_id"] in owners]
    for note, count in Counter(row["note_id"] for row in left).items():
        if count > touched[note]:
            yield f"I2: {count} commands have left note {note} as it was, and {touched[note]} were to"
    texts = case.facts.by_version
    for row in left:
        note, version, text = row["note_id"], row["note_version"], row["marker"]
        if row["body"] and text != texts[note, version]:
            yield f"I2: version {version} of note {note} was left as {text}, which it is not"


def the_same_again(case: Case) -> Iterator[str]:
    """I2: a write repeated with its key gets the same answer."""
    for each in case.writes:
        outcomes = (answer for answer in each.write.attempts if answer.is_outcome)
        answers = {(answer.status // 100, answer.code, answer.version) for answer in outcomes}
        if each.write.key and len(answers) > 1 and not case.is_replayed(each):
            yield f"I2: {describe(each.write)} was repeated with its key and got different answers: {answers}"


def derived(case: Case) -> Iterator[str]:
    """I1, I2: each transaction left exactly what its commands make of what the one before had left."""
    yield from case.replay.complaints
