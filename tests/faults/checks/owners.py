"""I10: no owner reads or changes another's notes."""

from collections.abc import Iterator

from tests.faults.checks.case import ANSWERED, Case, describe, notes_of


def changed_own(case: Case) -> Iterator[str]:
    """I10: every change is by the note's owner."""
    owners = owners_of_notes(case)
    for row in case.facts.applied():
        if owners.get(row["note_id"], row["owner_id"]) != row["owner_id"]:
            yield f"I10: owner {row['owner_id']} has changed note {row['note_id']}, which is another's"
    for each in case.writes:
        if each.write.is_trespass and each.status == "applied":
            yield f"I10: {describe(each.write)} changed another owner's note"


def shown_own(case: Case) -> Iterator[str]:
    """I10: every note that is shown is the reader's, and every read of another's is not found."""
    owners = owners_of_notes(case)
    for read in case.history.reads:
        if read.is_trespass and read.answer.status not in (0, 404, 503):
            yield f"I10: another owner's note {read.note} was answered {read.answer.status}"
        if read.answer.status in ANSWERED and owners.get(read.note, read.owner) != read.owner:
            yield f"I10: owner {read.owner} was shown note {read.note}, which is another's"
    for look in case.history.looks:
        for note in notes_of(look) if look.answer.status in ANSWERED else ():
            if owners.get(note["id"], look.owner) != look.owner:
                yield f"I10: owner {look.owner} was shown note {note['id']} in the {look.what}, which is another's"


def owners_of_notes(case: Case) -> dict[int, int]:
    """Who has created each note."""
    return {row["note_id"]: row["owner_id"] for row in case.facts.applied() if row["type"] == "note.create"}
