"""Decides each promise from what clients saw and what the database holds; a violation is a sentence that names one.

The database's evidence is its rows and an audit by triggers, which has the order of events.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tests.faults.checks import (
    accounts,
    answers,
    changes,
    dead_letters,
    once,
    order,
    outcomes,
    owners,
    pages,
    reads,
    refused,
    times,
)
from tests.faults.checks.case import Case, kind_of
from tests.faults.facts import Facts
from tests.faults.history import Answer, History

Rule = Callable[[Case], Iterator[str]]
RULES: tuple[Rule, ...] = (
    outcomes.accepted,
    outcomes.counted,
    outcomes.present,
    once.once,
    once.derived,
    once.unchanged,
    once.the_same_again,
    refused.refused,
    refused.reused,
    answers.truthful,
    answers.truthful_of_several,
    answers.imported,
    answers.told_as_decided,
    answers.polled,
    answers.alike,
    answers.conditional,
    answers.rejected_rightly,
    answers.answered_as_declared,
    reads.read_truly,
    pages.pages,
    order.numbered,
    order.in_order,
    times.in_time,
    times.available,
    owners.changed_own,
    owners.shown_own,
    changes.followed,
    changes.followed_rightly,
    changes.followed_in_order,
    changes.followed_as_committed,
    changes.purged,
    changes.begun_anew_for_a_reason,
    changes.woken,
    *accounts.RULES,
    *dead_letters.RULES,
)


def violations(history: History, facts: Facts) -> list[str]:
    """Every broken promise that the evidence shows."""
    case = Case(history, facts)
    return [*history.complaints, *(each for rule in RULES for each in rule(case))]


def kinds(given: Iterable[Answer]) -> Counter[str]:
    """How often each kind of answer in the table of statuses was seen."""
    return Counter(kind_of(answer) for answer in given if answer.status)
