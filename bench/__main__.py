"""Measures every contender in turn, round after round, and then under faults: `python -m bench`."""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from bench.contenders import Contender, running
from bench.load import require_tools
from bench.machine import describe
from bench.measure import measure
from bench.plots import draw
from bench.report import page, problems, tables
from bench.results import Measurement, Results, Series
from bench.scale import LARGE, scaled, table
from bench.scenarios import ALL_PARTITIONS, CONNECTIONS, SCENARIOS, Cell, cells
from bench.targets import judged
from bench.troubles import CONTENDERS, TROUBLES, endure
from dev.backend import Services, UnavailableError
from dev.services import services

LATEST = Path(__file__).parent / "results" / "latest.json"
DOCS = Path(__file__).parent.parent / "docs"


def main() -> int:
    """Measures, prints, saves; returns 1 if a measurement is invalid or a write was lost."""
    options = arguments()
    results = Results.load(options.read) if options.read else measured(options)
    print(tables(results), judged(results), table(results.scales), sep="\n")
    if options.write:
        draw(results, DOCS / "performance")
        results.save(DOCS / "performance" / "results.json")
        (DOCS / "performance.md").write_text(page(results))
    for problem in problems(results):
        print(problem, file=sys.stderr)
    return 1 if problems(results) else 0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scenario", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--connections", nargs="+", type=int, default=list(CONNECTIONS))
    parser.add_argument("--owners", nargs="+", type=int, default=[1, ALL_PARTITIONS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--trouble", nargs="*", choices=TROUBLES, default=list(TROUBLES))
    parser.add_argument("--scale", type=int, default=LARGE, help="notes of the owner with many; 0 leaves them out")
    parser.add_argument("--write", action="store_true", help="docs/performance.md and its plots")
    parser.add_argument("--read", type=Path, metavar="JSON", help="take an earlier run's results instead of measuring")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Results:
    """Run the benchmark and save the results."""
    require_tools()
    try:
        with services() as urls:
            results = asyncio.run(run(urls, options))
    except UnavailableError as error:
        raise SystemExit(str(error)) from error
    results.save(LATEST)
    return results


async def run(urls: Services, options: argparse.Namespace) -> Results:
    """Measures everything that the options select."""
    machine = await describe(urls)
    async with running(urls, max(options.owners)) as (stage, contenders):
        measurements = await rounds(plan(options), contenders, options.seconds)
        troubles: list[Series] = []
        for trouble in options.trouble:
            for name in CONTENDERS:
                say(f"trouble: {trouble}, {name}")
                troubles.append(await endure(trouble, contenders[name], stage))
        if options.scale:
            say(f"scale: {options.scale:,} notes")
        scales = await scaled(stage, options.scale) if options.scale else []
    return Results(machine, options.rounds, options.seconds, measurements, troubles, scales)


def plan(options: argparse.Namespace) -> list[tuple[int, Cell]]:
    """The measurements of each round; contenders alternate within a round."""
    return [
        (number * SCENARIOS[scenario].turns + turn, cell)
        for number in range(options.rounds)
        for scenario in options.scenario
        for turn in range(SCENARIOS[scenario].turns)
        for connections in options.connections
        if connections in SCENARIOS[scenario].connections
        for cell in cells(scenario, connections, options.owners)
    ]


async def rounds(steps: list[tuple[int, Cell]], contenders: dict[str, Contender], seconds: int) -> list[Measurement]:
    """Run the measurements one at a time."""
    measurements: list[Measurement] = []
    started = time.monotonic()
    for done, (number, cell) in enumerate(steps):
        each = max(1, seconds // SCENARIOS[cell.scenario].turns)
        measurements.append(await measure(cell, contenders[cell.contender], number, each))
        left = (time.monotonic() - started) / (done + 1) * (len(steps) - done - 1)
        what = f"{cell.scenario}, {cell.contender}, {cell.owners} owners, {cell.connections} connections"
        rate = f"{measurements[-1].requests_per_second:,.0f}/s"
        say(f"{left / 60:.0f} min left; {what}: {rate} {measurements[-1].problem or ''}")
    return measurements


def say(text: str) -> None:
    """Print the progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
