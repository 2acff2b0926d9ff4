"""I3: what is refused or rejected has no effect."""

from collections.abc import Iterator

from tests.faults.checks.case import Case, describe

WITHOUT_EFFECT = ("refused", "rejected", "failed")


def refused(case: Case) -> Iterator[str]:
    """I3: refused and rejected writes have no effect."""
    by_marker = case.facts.by_marker
    for each in case.writes:
        if each.status not in WITHOUT_EFFECT or case.is_replayed(each):
            continue
        is_applied = any(command["status"] == "applied" for command in each.commands)
        if is_applied or each.write.marker in by_marker or f"{each.write.marker}#0" in by_marker:
            yield f"I3: {describe(each.write)} was {each.status} but is applied"


def reused(case: Case) -> Iterator[str]:
    """I2, I3: a key that is used again for another request gets its own answer, and has no effect."""
    for each in case.writes:
        if each.write.is_reuse and each.status not in ("rejected", "refused", "unknown"):
            yield f"I2: {describe(each.write)} has the key of another write, and was {each.status}"
        if each.write.is_reuse and each.status == "rejected" and each.write.original[0] != REUSED:
            yield f"I4: {describe(each.write)} has the key of another write, and was answered {each.write.original[0]}"


REUSED = 422
