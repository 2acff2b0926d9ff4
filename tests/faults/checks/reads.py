"""I4, I5: every note that was read was committed, and not older than what had been answered before."""

from collections.abc import Iterator

from tests.faults.checks.case import Case
from tests.faults.history import Read
from tests.faults.states import States

FOUND = (200, 304)


def read_truly(case: Case) -> Iterator[str]:
    """I4, I5: a read shows the note in one of the states that it can have seen."""
    for read in case.history.reads:
        owner = case.states.get(read.owner)
        if owner and read.note and not read.is_trespass and read.answer.status in (*FOUND, 404):
            yield from judge(read, owner)


def judge(read: Read, owner: States) -> Iterator[str]:
    """The violations of one read."""
    answer, where = read.answer, "deleted note" if read.is_in_trash else "note"
    seen = answer.version or 0 if answer.status in FOUND else 0
    known = owner.buried if read.is_in_trash else owner.made
    if seen and (read.note, seen) not in known:
        yield f"I4: {where} {read.note} was read in version {seen}, which was never committed"
        return
    if answer.body and answer.status == 200 and not read.is_in_trash:
        yield from compare_text(read, owner, seen)
    possible = owner.versions(read.note, answer.asked, answer.answered, in_trash=read.is_in_trash)
    if seen not in possible:
        shown = f"in version {seen}" if seen else "as not there"
        is_old = not seen or all(seen < each for each in possible if each)
        yield f"I{5 if is_old else 4}: {where} {read.note} was read {shown}, and it was {[*possible]} meanwhile"


def compare_text(read: Read, owner: States, version: int) -> Iterator[str]:
    """The violation of a read whose text is another one than that version's."""
    expected = owner.parsed(read.note, version)
    if any(read.answer.body.get(name) != value for name, value in expected.items()):
        yield f"I4: note {read.note} was read as {read.answer.body}, and version {version} is {expected}"
