"""What runs have shown, as Markdown: the terminal and docs/reliability.md get the same."""

import re
from collections import Counter
from pathlib import Path

from tests.faults.catching import Catch
from tests.faults.nemesis import FAULTS
from tests.faults.run import Verdict

PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"
SHOWN = 20


def printed(verdicts: list[Verdict]) -> str:
    """The runs, how often each fault was injected, how often each answer came, and every violation."""
    faults = sum((verdict.faults for verdict in verdicts), Counter[str]())
    answers = sum((verdict.answers for verdict in verdicts), Counter[str]())
    return "\n".join(
        [
            "| seed | seconds | commands | faults | slowest recovery | violations |",
            "|---:|---:|---:|---:|---:|---:|",
            *map(row, verdicts),
            "",
            *table("fault", {name: faults[name] for name in FAULTS}),
            "",
            *table("answer", dict(sorted(answers.items()))),
            *(f"\n- {violation}" for verdict in verdicts for violation in verdict.violations[:SHOWN]),
        ]
    )


def row(verdict: Verdict) -> str:
    """One run."""
    slowest = max(verdict.recoveries, default=0)
    cells = (
        verdict.seed,
        f"{verdict.seconds:.0f}",
        f"{verdict.commands:,}",
        verdict.faults.total(),
        f"{slowest:.1f} s",
        len(verdict.violations),
    )
    return f"| {' | '.join(map(str, cells))} |"


def table(name: str, counts: dict[str, int]) -> list[str]:
    """How often each was counted."""
    return [f"| {name} | times |", "|---|---:|", *(f"| {each} | {count:,} |" for each, count in counts.items())]


def caught(catches: list[Catch]) -> str:
    """What was found of each mutation."""
    rows = (
        f"| {each.mutation.sentence} | {each.seconds:.0f} s | "
        f"{'' if each.is_caught else '**not caught** '}{', '.join(each.promises)} |"
        for each in catches
    )
    return "\n".join(["| mutation | caught within | broken promises found |", "|---|---:|---|", *rows])


def write(section: str, text: str) -> None:
    """Puts the text into its section of docs/reliability.md."""
    begin, end = f"<!-- {section} -->\n", f"\n<!-- end of {section} -->"
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"(?s){begin}.*?{end}", lambda _: f"{begin}{text.strip()}{end}", page))
