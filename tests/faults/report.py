"""The results of runs as Markdown, for the terminal, for docs/reliability.md and for the README."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import median

from dev.backend import ROOT
from tests.faults.availability import NONE, TWO_AT_ONCE, Availability, Share
from tests.faults.catching import Catch
from tests.faults.nemesis import FAULTS
from tests.faults.runs import SHOWN, Total, Verdict

PAGE, README = ROOT / "docs" / "reliability.md", ROOT / "README.md"
MUTATIONS, RUNS, SUMMARY, TOTAL = "mutations", "runs", "summary", "total"
WIDTH = 118


def printed(runs: Sequence[Verdict]) -> str:
    """The runs, what each fault did, how often each response came, and at the end the sums and every violation."""
    return f"{details(runs)}\n\n{summary(runs)}"


def summary(runs: Sequence[Verdict]) -> str:
    """The sums over all runs, and every violation."""
    total = Total(runs)
    return "\n".join(
        [
            cells_of("commands", "seeds", "kinds of fault", "faults", *total.broken()),
            f"|{'---:|' * (4 + len(total.broken()))}",
            cells_of(f"{total.commands:,}", *numbers(total), *total.broken().values()),
            *(f"\n- {violation}" for run in runs for violation in run.violations[:SHOWN]),
        ]
    )


def details(runs: Sequence[Verdict]) -> str:
    """The runs, what each fault did, and how often each response came."""
    total = Total(runs)
    return "\n".join(
        [
            "| rig | seed | source | seconds | commands | faults | slowest recovery | clients stalled | violations |",
            "|---|---:|---|---:|---:|---:|---:|---:|---:|",
            *map(row, runs),
            "",
            "| fault | times | writes | reads | while recovering | median recovery | slowest |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *fault_rows(total),
            "",
            "| response | times |",
            "|---|---:|",
            *(f"| {answer} | {count:,} |" for answer, count in sorted(total.answers.items())),
        ]
    )


def numbers(total: Total) -> tuple[int, int, int]:
    """The seeds, the kinds of faults, and the faults."""
    return len({run.seed for run in total.runs}), len(total.faults), total.faults.total()


def row(run: Verdict) -> str:
    """One run."""
    slowest = max(chain(*run.recoveries.values()), default=0)
    return cells_of(
        run.rig,
        run.seed,
        run.source[:7],
        f"{run.seconds:.0f}",
        f"{run.commands:,}",
        sum(run.faults.values()),
        f"{slowest:.1f} s",
        f"{run.lag_seconds:.1f} s",
        len(run.violations),
    )


def fault_rows(total: Total) -> list[str]:
    """What each fault did to clients, how long recovery from it took, and the same of two at once and of none."""
    order = {name: place for place, name in enumerate(FAULTS)}
    names = sorted(total.faults, key=lambda name: (order.get(name, len(order)), name))
    return [fault_row(name, total.faults[name], total.recoveries[name], total.availability) for name in names] + [
        fault_row(name, None, (), total.availability) for name in (TWO_AT_ONCE, NONE) if name in total.availability
    ]


def fault_row(
    name: str, times: int | None, recoveries: Sequence[float], availability: Mapping[str, Availability]
) -> str:
    """The figures of one kind of fault."""
    shares = availability.get(name, Availability())
    return cells_of(
        name,
        "" if times is None else times,
        *map(percent, (shares.writes, shares.reads, shares.recovering)),
        *((f"{median(recoveries):.1f} s", f"{max(recoveries):.1f} s") if recoveries else ("", "")),
    )


def cells_of(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def percent(share: Share) -> str:
    """A share for people: all only if it was all."""
    if math.isnan(share.percent):
        return ""
    return "100 %" if share.good == share.all else f"{min(share.percent, 99.9):.1f} %"


def sentence(runs: Sequence[Verdict]) -> str:
    """What all runs together show, for the README."""
    total = Total(runs)
    seeds, kinds, faults = numbers(total)
    broken = {heading: count or "none" for heading, count in total.broken().items()}
    text = (
        f"{total.commands:,} commands from {seeds} seeds went through {faults:,} faults of {kinds} kinds: "
        f"{broken['lost']} was lost, {broken['duplicated']} took effect twice, {broken['reordered']} overtook "
        f"another, and {broken['untrue']} was answered untruly."
    )
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def failovers(run: Verdict) -> str:
    """The duration of each recovery, and every violation, of a run that injects each fault alone.

    What was broken cannot be put down to one of the faults, so it stands in the row of all.
    """
    total = Total([run])
    every = [*chain(*run.recoveries.values())]
    return "\n".join(
        [
            f"| fault | times | median recovery | slowest | {' | '.join(total.broken())} |",
            f"|---|{'---:|' * (3 + len(total.broken()))}",
            *(
                recovery_row(name, seconds, [""] * len(total.broken()))
                for name, seconds in sorted(run.recoveries.items())
            ),
            recovery_row(f"all, {run.commands:,} commands", every, [*map(str, total.broken().values())]),
            *(f"\n- {violation}" for violation in run.violations[:SHOWN]),
        ]
    )


def recovery_row(name: str, seconds: Sequence[float], broken: Sequence[str]) -> str:
    """The durations of the recoveries from one fault."""
    return cells_of(name, len(seconds), f"{median(seconds):.1f} s", f"{max(seconds):.1f} s", *broken)


def caught(catches: list[Catch]) -> str:
    """The findings for each mutation."""
    rows = (
        f"| {each.mutation.sentence} | {each.seconds:.0f} s | "
        f"{'' if each.is_caught else '**not caught** '}{', '.join(each.promises)} |"
        for each in catches
    )
    return "\n".join(["| mutation | caught within | broken promises found |", "|---|---:|---|", *rows])


def write(section: str, text: str, file: Path = PAGE) -> None:
    """Writes the text into its section of a page, if there is one; keeps the rows of mutations that were not run."""
    page = file.read_text()
    begin, end = f"<!-- {section} -->\n", f"<!-- end of {section} -->"
    before, found, rest = page.partition(begin)
    former, _, after = rest.partition(end)
    kept = [line for line in former.splitlines() if section == MUTATIONS and line and cell(line) not in cells(text)]
    indent = former.rpartition("\n")[2]
    if found:
        file.write_text("".join([before, begin, "\n".join([text.rstrip(), *kept]), "\n", indent, end, after]))


def cells(text: str) -> set[str]:
    """The first cells of a table."""
    return {cell(line) for line in text.splitlines()}


def cell(line: str) -> str:
    """The first cell of a row."""
    return line.split("|")[1].strip() if "|" in line else line
