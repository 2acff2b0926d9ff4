"""The rows of the audit that belong to a violation, which a run prints with it."""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tests.faults.facts import Facts

NAMED = re.compile(r"\b(transaction|owner|note|command) ([0-9a-f-]+)\b")
LEFT_OUT = {"title", "description", "created_date", "updated_date", "deleted_date", "body"}
ROWS = 40


def evidence(violation: str, facts: Facts) -> str:
    """The violation, and below it the rows of what it names, one a line."""
    rows = islice(rows_of(violation, facts), ROWS)
    return "\n".join([violation, *(f"    {describe(row)}" for row in rows)])


def rows_of(violation: str, facts: Facts) -> Iterator[Any]:
    """The rows of each command and note that a violation names, and what its owner's rows were in a transaction.

    The rows between the first and the last of that transaction are shown, too.
    """
    named = defaultdict[str, set[str]](set)
    for kind, name in NAMED.findall(violation):
        named[kind].add(name)
    about = [row for row in facts.audit if is_about(row, named["note"], named["command"])]
    owners = {int(each) for each in named["owner"]} or {row["owner_id"] for row in about}
    seqs = [row["seq"] for row in facts.audit if str(row["transaction"]) in named["transaction"]]
    first, last = min(seqs, default=1), max(seqs, default=0)
    shown = {row["seq"] for row in about}
    for row in facts.audit:
        if row["seq"] in shown or (first <= row["seq"] <= last and row["owner_id"] in owners):
            yield row


def is_about(row: Any, notes: set[str], commands: set[str]) -> bool:
    """Whether the row is that of one of the notes, or of a command that names one, or of one of the commands."""
    if row["kind"] == "command":
        return row["id"] in commands or str(row["note_id"]) in notes
    return row["kind"] != "owner" and row["id"] in notes


def describe(row: Any) -> str:
    """The row's columns that have a value, without texts and times."""
    return " ".join(f"{name}={value}" for name, value in row.items() if value is not None and name not in LEFT_OUT)
