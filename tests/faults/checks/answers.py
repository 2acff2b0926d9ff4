"""I4: every answer to a write is true: the outcome that was committed, for a reason that there was."""

from collections.abc import Iterator

from tests.faults.checks.case import Case, Judged, describe
from tests.faults.history import PATCHED, Answer, Write, text_of_item

NOT_FOUND, WRONG_VERSION, FAILED = 404, 412, 500
PARTS = {"batch": PATCHED + 1, "swap": 2}
IN_TRASH = ("restore", "purge")


def truthful(case: Case) -> Iterator[str]:
    """I4: the outcome that a client saw is the committed one, of its own request."""
    versions = case.facts.by_version
    for each in case.writes:
        write = each.write
        if each.status == "applied" and write.kind in WITH_NOTE:
            _, body, version = write.original
            own = write.kind not in ("touch", "restore")
            text = write.marker if own else versions.get((write.note or 0, version or 0))
            if body and (body.get("description", body.get("name")) != text or body.get("version") != version):
                yield f"I4: {describe(write)} was answered {body}, version {version}"
            if body and version and versions.get((body["id"], version)) != text:
                yield f"I4: {describe(write)} got version {version} of note {body['id']}, which is another's"
    for answer in case.history.answers():
        if answer.code == "internal_error":
            yield f"I4: a gateway answered internal_error: {answer.body}"


WITH_NOTE = ("create", "replace", "patch", "touch", "restore")
"""The kinds of writes whose answer has a note or an account."""


def truthful_of_several(case: Case) -> Iterator[str]:
    """I4: the same for several writes at once, item by item."""
    versions = case.facts.by_version
    for each in case.writes:
        write = each.write
        if each.status != "applied" or write.kind not in PARTS:
            continue
        if write.original[1] and len(write.made) != PARTS[write.kind]:
            yield f"I4: {describe(write)} was answered {write.original[1]}"
        for index, item in enumerate(write.made):
            is_deleted = write.kind == "swap" and index == 1
            if item[0] != write.note if is_deleted else versions.get(item) != text_of_item(write.marker, index):
                yield f"I4: {describe(write)} got note {item[0]}, version {item[1]}, which is another's"


def imported(case: Case) -> Iterator[str]:
    """I4: a complete import has imported every line, whether or not it was repeated."""
    for each in case.writes:
        if each.write.kind == "import" and each.status == "applied":
            end = each.write.original[1][-1]["end"]
            if (end["imported"], end["rejected"]) != (each.write.lines, 0):
                yield f"I4: {describe(each.write)} of {each.write.lines} lines was answered {end}"


def told_as_decided(case: Case) -> Iterator[str]:
    """I4: what a client was told about its write is what its command was decided to be."""
    for each in case.writes:
        if each.status not in ("applied", "rejected", "failed"):
            continue
        for command in each.commands:
            if each.status not in case.statuses(command["id"]):
                yield f"I4: {describe(each.write)} was reported as {each.status}, but is {command['status']}"


def polled(case: Case) -> Iterator[str]:
    """I4, at the commands' URLs."""
    for each in case.writes:
        for poll in each.write.polls:
            if poll.status == 200 and poll.body["answer"] and not each.write.is_reuse:
                committed = case.statuses(poll.body["id"])
                if poll.body["status"] not in committed:
                    yield f"I4: {describe(each.write)} was reported as {poll.body['status']}, but is {committed}"


def alike(case: Case) -> Iterator[str]:
    """I4: every answer about a write's outcome is the same, whenever and wherever it was requested."""
    for each in case.writes:
        if each.write.kind == "import":
            continue
        results = [result for result in each.write.results if result[0] != FAILED or not case.is_replayed(each)]
        statuses = {status // 100 for status, _ in results}
        bodies = [body for status, body in results if status // 100 == 2 and body]  # or a short one is preferred
        if len(statuses) > 1 or len({str(body.get("items", body.get("id"))) for body in bodies}) > 1:
            yield f"I4: {describe(each.write)} has contradictory answers: {results}"


def conditional(case: Case) -> Iterator[str]:
    """I4: a conditional write was applied to exactly the version that it named, or rejected because of another one."""
    for each in case.writes:
        write = each.write
        if write.condition is None or write.is_trespass or write.is_reuse or not write.decided:
            continue
        before = case.before(each.command, write.note) if each.command else None
        if each.status == "applied" and before is not None and before != write.condition:
            yield f"I4: {describe(write)} asked for version {write.condition} and was applied to {before}"
        status, _, shown = write.original
        if status != WRONG_VERSION:
            continue
        if write.condition == shown:
            yield f"I4: {describe(write)} asked for version {shown}, but was answered 412 with that version"
        possible = [before] if before is not None else versions_meanwhile(case, each)
        if not set(possible) - {write.condition, 0}:
            yield f"I4: {describe(write)} asked for version {write.condition}, which is current, but was answered 412"


def versions_meanwhile(case: Case, judged: Judged) -> list[int]:
    """The versions that the write's note had, as far as can be told, between its sending and its rejection."""
    write, decided = judged.write, judged.write.decided
    if write.owner not in case.states or not decided:
        return [0]
    in_trash, states = write.kind in IN_TRASH, case.states[write.owner]
    return [*states.versions(write.note or 0, write.asked, decided.answered, in_trash=in_trash)]


def rejected_rightly(case: Case) -> Iterator[str]:
    """I4: every rejection has a valid reason; another owner's note is not found."""
    for each in case.writes:
        write = each.write
        if each.status != "rejected" or write.is_reuse:
            continue
        status = write.original[0]
        if status == NOT_FOUND and not write.is_trespass:
            before = case.before(each.command, write.note) if each.command else None
            is_right = 0 in ([before] if before is not None else versions_meanwhile(case, each))
        else:
            is_right = status == (NOT_FOUND if write.is_trespass else WRONG_VERSION if write.condition else 0)
        if not is_right:
            yield f"I{10 if write.is_trespass else 4}: {describe(write)} was answered {status}"


def answered_as_declared(case: Case) -> Iterator[str]:
    """I4: a read of one's own answers it, that it is gone or unchanged, or that Postgres is unavailable."""
    own = [read.answer for read in case.history.reads if not read.is_trespass]
    for answer in own + [look.answer for look in case.history.looks]:
        if answer.status not in (0, 200, 304, 404, 503):
            yield f"I4: a read of one's own was answered {answer.status} {answer.code}"
    for look in case.history.looks:
        if look.answer.status == NOT_FOUND and look.what != "versions":
            yield f"I4: a page ({look.what}) was answered {look.answer.code}"
    for each in case.writes:
        yield from (unexpected(each.write, poll) for poll in each.write.polls if poll.status not in (0, 200, 503))


def unexpected(write: Write, poll: Answer) -> str:
    """The violation of an answer that a command's URL does not give."""
    return f"I4: {describe(write)} was answered {poll.status} {poll.code} at its command's URL"
