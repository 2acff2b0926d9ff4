"""I4, I5: every page that was read is that of one of the states that it can have seen: notes, order, texts, numbers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Any

from tests.faults.checks.case import Case, is_complete
from tests.faults.history import COLOURS, Look
from tests.faults.states import State, States

ANSWERED, NOT_FOUND = (200, 304), "note_not_found"
ROLLBACK = "rollback"
SHOWN = 6
"""How many notes of a page a violation names."""


Versions = frozenset[tuple[int, int]]
"""Notes with a version."""


@dataclass(slots=True)
class Question:
    """A page, and the states of which it has to be one."""

    look: Look
    first: int
    last: int
    body: str
    parsed: Any = None
    lost: Versions = frozenset()
    expected: str = field(default="", init=False)
    """The notes of the first state, for a violation."""


def pages(case: Case) -> Iterator[str]:
    """I4, I5: each page is one of a state that was committed, and not older than what had been answered before."""
    by_owner: dict[int, list[Question]] = {}
    lost = find_lost_versions(case)
    for look in case.history.looks:
        if look.owner in case.states and (question := ask(look, case.states[look.owner], lost)):
            by_owner.setdefault(look.owner, []).append(question)
    for owner_id, questions in by_owner.items():
        owner = case.states[owner_id]
        wrong = unanswered(owner, questions)
        earlier = [Question(each.look, 0, each.first - 1, each.body, each.parsed, each.lost) for each in wrong]
        never = {id(each.look) for each in unanswered(owner, earlier)}
        for each in wrong:
            yield describe(each, is_stale=id(each.look) not in never)


def find_lost_versions(case: Case) -> Versions:
    """The versions that need not be listed: of several writes at once, a worker of the version before keeps none."""
    if not any(each.name == ROLLBACK for each in case.history.disturbances):
        return frozenset()
    return frozenset(version for version, maker in case.facts.makers.items() if "item" in maker)


def ask(look: Look, owner: States, lost: Versions) -> Question | None:
    """The question whether the page is right, if it was answered and can be judged."""
    answer = look.answer
    if answer.status not in ANSWERED:
        if answer.code != NOT_FOUND or look.what != "versions":
            return None
        answer.body = b"null"
    body = answer.body.decode()
    parsed = None
    if look.what == "export":
        parsed = [json.loads(line) for line in body.splitlines()]
        if not is_complete(parsed):
            return None
    elif look.what in ("search", "versions"):
        parsed = json.loads(body)
        if parsed and look.what == "search" and parsed["limited"]:
            return None
    first = owner.least(answer.asked)
    return Question(look, first, max(first, owner.most(answer.answered)), body, parsed, lost)


def unanswered(owner: States, questions: list[Question]) -> list[Question]:
    """The questions to which the answer is no."""
    state, wrong, waiting = State(), list[Question](), list[Question]()
    coming = sorted(questions, key=attrgetter("first"), reverse=True)
    for number in range(len(owner.transactions) + 1):
        if number:
            state.apply(owner.transactions[number - 1])
        while coming and coming[-1].first <= number:
            waiting.append(coming.pop())
        left: list[Question] = []
        for each in waiting:
            if each.last < number:
                wrong.append(each)
            elif not is_of(each, state, owner):
                left.append(each)
        waiting = left
        if not (waiting or coming):
            break
    return wrong + waiting + coming


def is_of(question: Question, state: State, owner: States) -> bool:
    """Whether the page is that of the state."""
    judge = {"list": is_list, "trash": is_trash, "versions": is_history, "search": is_search, "export": is_export}
    return judge[question.look.what](question, state, owner)


def is_list(question: Question, state: State, _: States) -> bool:
    """Whether the page of a list is that of the state, and so are its link to the next one and the number of notes."""
    look = question.look
    is_descending = look.sort.startswith("-") != look.is_backwards
    ids = state.walk(look.sort.removeprefix("-"), look.place, is_descending=is_descending)
    if look.prefix:
        ids = (note for note in ids if state.notes[note]["title"].lower().startswith(look.prefix))
    page = [*islice(ids, look.limit + 1)]
    shown = page[: look.limit]
    if look.is_backwards:
        shown.reverse()
    question.expected = question.expected or str(shown[:SHOWN])
    if question.body != f"[{','.join(state.texts[note] for note in shown)}]":
        return False
    if look.is_counted and str(count(look, state)) != look.answer.total:
        return False
    return look.is_backwards or has_next(look) == (len(page) > look.limit)


def count(look: Look, state: State) -> int:
    """The number of notes on all pages of the list."""
    if not look.prefix:
        return len(state.notes)
    return sum(row["title"].lower().startswith(look.prefix) for row in state.notes.values())


def is_trash(question: Question, state: State, _: States) -> bool:
    """Whether the page of the trash is that of the state, and so is its link to the next one."""
    look = question.look
    page = [*islice(state.walk("trash", look.place, is_descending=True), look.limit + 1)]
    question.expected = question.expected or str(page[:SHOWN])
    shown = ",".join(state.trash[note][1] for note in page[: look.limit])
    return question.body == f"[{shown}]" and has_next(look) == (len(page) > look.limit)


def is_history(question: Question, state: State, owner: States) -> bool:
    """Whether the versions of a note are those that it has in the state; a deleted note has none."""
    look = question.look
    if look.note not in state.notes:
        return question.parsed is None
    if question.parsed is None:
        return False
    newest = min(state.notes[look.note]["version"], look.place[0] - 1 if look.place else 10**9)
    shown = [note["version"] for note in question.parsed]
    kept = [each for each in range(newest, 0, -1) if each in shown or (look.note, each) not in question.lost]
    question.expected = question.expected or str(kept[:SHOWN])
    is_last = len(kept) <= look.limit
    is_linked_rightly = has_next(look) != is_last or (is_last and bool(question.lost))
    if shown != kept[: look.limit] or not is_linked_rightly:
        return False
    return all(is_text(note, owner.parsed(look.note, note["version"])) for note in question.parsed)


def is_text(note: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether the note has the expected members; those of a version that one transaction made and replaced are none."""
    return all(note[name] == value for name, value in expected.items())


def is_search(question: Question, state: State, _: States) -> bool:
    """Whether a search has found as many notes of the state as there are, and none besides; their order is free."""
    found, look = question.parsed, question.look
    if look.text in COLOURS:
        matches = {note for note, row in state.notes.items() if row["title"].startswith(f"{look.text} ")}
    else:
        matches = {note for note, row in state.notes.items() if row["description"].partition("#")[0] == look.text}
    question.expected = question.expected or str(sorted(matches)[:SHOWN])
    notes = [] if found["matched"] == "similar" else found["notes"]
    if not matches or not notes:
        return not matches and not notes
    ids = {note["id"] for note in notes}
    is_whole = found["total"] == len(matches) and len(ids) == len(notes) == min(look.limit, len(matches))
    return is_whole and ids <= matches and all(note == json.loads(state.texts[note["id"]]) for note in notes)


def is_export(question: Question, state: State, _: States) -> bool:
    """Whether an export has all notes of the state, whose revision it names."""
    begin, *notes, end = question.body.splitlines()
    question.expected = question.expected or f"{len(state.notes)} notes in revision {state.revision}"
    if question.parsed[0]["export"]["revision"] != state.revision or question.parsed[-1]["end"]["notes"] != len(notes):
        return False
    return notes == [state.texts[note] for note in state.walk("id", None, is_descending=False)] and bool(begin and end)


def has_next(look: Look) -> bool:
    """Whether the page has a link to a next one."""
    return 'rel="next"' in (look.answer.link or "")


def describe(question: Question, *, is_stale: bool) -> str:
    """The violation of a page that is not that of a state that it can have seen."""
    look = question.look
    notes = json.loads(question.body) if look.what in ("list", "trash") else question.parsed
    notes = notes["notes"] if look.what == "search" else notes or []
    shown = [(note.get("id"), note.get("version")) for note in notes][:SHOWN]
    members = (look.sort, look.prefix, look.text, look.note, look.place)
    about = f"owner {look.owner}'s {look.what} ({', '.join(str(each) for each in members if each)})"
    when = f"states {question.first} to {question.last}"
    if is_stale:
        return f"I5: {about} showed {shown}, which was so before {when}"
    return f"I4: {about} showed {shown}, which was never so in {when}: {question.expected} was at first"
