"""The tables, as Markdown: the terminal and docs/performance.md get the same ones."""

from collections.abc import Collection
from pathlib import Path
from string import Template

from bench.results import Results
from bench.scale import table
from bench.scenarios import SCENARIOS, Cell
from bench.targets import judged
from bench.troubles import TROUBLES

TEMPLATE = Path(__file__).with_name("performance.template.md")

HEADER = """\
| connections | contender | owners | requests/s | CPU | p50 | p99 | requests/s | p50 ms | p99 ms |
|---:|---|---:|---|---|---|---|---:|---:|---:|
"""


def tables(results: Results) -> str:
    """One table for each scenario."""
    return "\n".join(_table(results, name) for name in SCENARIOS if _cells(results, name))


def _cells(results: Results, scenario: str) -> list[Cell]:
    return [cell for cell in results.cells() if cell.scenario == scenario]


def _table(results: Results, scenario: str) -> str:
    cells = sorted(_cells(results, scenario), key=lambda cell: cell.connections)
    rows = "".join(_row(results, cell) for cell in cells)
    return f"### {SCENARIOS[scenario].title}\n\n{HEADER}{rows}"


def _row(results: Results, cell: Cell) -> str:
    ratios = [
        str(results.ratio(cell, metric) or "") if cell.contender != SCENARIOS[cell.scenario].base else "1"
        for metric in ("requests_per_second", "cpu_seconds_per_1000", "p50_ms", "p99_ms")
    ]
    absolute = [
        f"{results.spread(cell, metric).median:,.{digits}f}"
        for metric, digits in (("requests_per_second", 0), ("p50_ms", 2), ("p99_ms", 2))
    ]
    return f"| {' | '.join([str(cell.connections), cell.contender, str(cell.owners), *ratios, *absolute])} |\n"


def problems(results: Results) -> list[str]:
    """A sentence for each measurement that proves nothing, and for each trouble that lost something."""
    measured = [f"{each.cell}, round {each.round}: {each.problem}" for each in results.measurements if each.problem]
    return measured + [f"{each.trouble}, {each.contender}: {each.problem}" for each in results.troubles if each.problem]


def page(results: Results) -> str:
    """docs/performance.md; without the sections of what was not measured."""
    sections = TEMPLATE.read_text().split("\n## ")
    present = {"$scale": results.scales, "$troubles": results.troubles}
    kept = [each for each in sections if all(measured for name, measured in present.items() if name in each)]
    targets = judged(results).strip()
    met, missed = targets.count("| met |"), targets.count("| **not met** |")
    return Template("\n## ".join(kept)).substitute(
        targets=targets,
        met=met,
        measured=met + missed,
        connections=listed({cell.connections for cell in results.cells()}),
        rounds=results.rounds,
        seconds=results.seconds,
        machine="\n".join(f"| {name} | {value} |" for name, value in results.machine.items()),
        tables=tables(results).strip(),
        scale=table(results.scales).strip(),
        troubles="\n".join(_trouble(results, name) for name in TROUBLES).strip(),
    )


def listed(numbers: Collection[int]) -> str:
    """The numbers in a sentence."""
    if not numbers:
        return ""
    *first, last = map(str, sorted(numbers))
    return f"{', '.join(first)} or {last}" if first else last


def _trouble(results: Results, name: str) -> str:
    contenders = [each for each in results.troubles if each.trouble == name]
    if not contenders:
        return ""
    rows = "".join(
        f"| {each.contender} | {each.accepted:,} | {each.written:,} | {each.settled_seconds:.1f} s |\n"
        for each in contenders
    )
    header = "| contender | accepted | written | everything written after the load by |\n|---|---:|---:|---:|\n"
    title = TROUBLES[name].title
    return f"### {title}\n\n![{title}](performance/{name}.svg)\n\n{header}{rows}"
