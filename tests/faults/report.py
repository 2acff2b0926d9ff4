"""The results of runs as Markdown, for the terminal and for docs/reliability.md."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from statistics import median

from tests.faults.catching import Catch
from tests.faults.nemesis import FAULTS
from tests.faults.run import Verdict

PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"
SHOWN = 20
MUTATIONS = "mutations"
PROMISES = {"lost": "I1", "duplicated": "I2", "reordered": "I6"}
"""The heading of a broken promise."""


def printed(verdicts: list[Verdict]) -> str:
    """The runs, how often each fault was injected, how often each answer came, and every violation."""
    faults = sum((verdict.faults for verdict in verdicts), Counter[str]())
    answers = sum((verdict.answers for verdict in verdicts), Counter[str]())
    return "\n".join(
        [
            "| seed | seconds | commands | faults | slowest recovery | clients stalled | violations |",
            "|---:|---:|---:|---:|---:|---:|---:|",
            *map(row, verdicts),
            "",
            *table("fault", {name: faults[name] for name in FAULTS}),
            "",
            *table("answer", dict(sorted(answers.items()))),
            *(f"\n- {violation}" for verdict in verdicts for violation in verdict.violations[:SHOWN]),
        ]
    )


def failovers(verdict: Verdict) -> str:
    """The duration of each recovery, and every violation, of a run that injects each fault alone.

    What was broken cannot be put down to one of the faults, so it stands in the row of all.
    """
    counts = Counter(violation.partition(":")[0] for violation in verdict.violations)
    broken = [counts.pop(promise, 0) for promise in PROMISES.values()]
    every = [*chain(*verdict.recoveries.values())]
    return "\n".join(
        [
            f"| fault | times | median recovery | slowest | {' | '.join(PROMISES)} | other violations |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *(recovery_row(name, seconds) for name, seconds in sorted(verdict.recoveries.items())),
            recovery_row(f"all, {verdict.commands:,} commands", every, [*broken, counts.total()]),
            *(f"\n- {violation}" for violation in verdict.violations[:SHOWN]),
        ]
    )


def recovery_row(name: str, seconds: Sequence[float], broken: Iterable[int | str] = ("",) * 4) -> str:
    """The durations of the recoveries from one fault."""
    cells = name, len(seconds), f"{median(seconds):.1f} s", f"{max(seconds):.1f} s", *broken
    return f"| {' | '.join(map(str, cells))} |"


def row(verdict: Verdict) -> str:
    """One run."""
    slowest = max(chain(*verdict.recoveries.values()), default=0)
    cells = (
        verdict.seed,
        f"{verdict.seconds:.0f}",
        f"{verdict.commands:,}",
        verdict.faults.total(),
        f"{slowest:.1f} s",
        f"{verdict.lag_seconds:.1f} s",
        len(verdict.violations),
    )
    return f"| {' | '.join(map(str, cells))} |"


def table(name: str, counts: dict[str, int]) -> list[str]:
    """How often each was counted."""
    return [f"| {name} | times |", "|---|---:|", *(f"| {each} | {count:,} |" for each, count in counts.items())]


def caught(catches: list[Catch]) -> str:
    """The findings for each mutation."""
    rows = (
        f"| {each.mutation.sentence} | {each.seconds:.0f} s | "
        f"{'' if each.is_caught else '**not caught** '}{', '.join(each.promises)} |"
        for each in catches
    )
    return "\n".join(["| mutation | caught within | broken promises found |", "|---|---:|---|", *rows])


def write(section: str, text: str) -> None:
    """Writes the text into its section of docs/reliability.md; keeps the rows of what was not run again."""
    page = PAGE.read_text()
    begin, end = f"<!-- {section} -->\n", f"<!-- end of {section} -->"
    before, _, rest = page.partition(begin)
    former, _, after = rest.partition(end)
    kept = [line for line in former.splitlines() if section == MUTATIONS and line and cell(line) not in cells(text)]
    PAGE.write_text("".join([before, begin, "\n".join([text.strip(), *kept]), "\n", end, after]))


def cells(text: str) -> set[str]:
    """The first cells of a table."""
    return {cell(line) for line in text.splitlines()}


def cell(line: str) -> str:
    """The first cell of a row."""
    return line.split("|")[1].strip() if "|" in line else line
