"""What Inkwell is meant to reach, with 64 owners and the default settings, against the direct API in the same run."""

from dataclasses import dataclass

from bench.contenders import INKWELL, INKWELL_202
from bench.results import Results, times
from bench.scenarios import ALL_PARTITIONS, Cell


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for the median of a ratio."""

    title: str
    cell: Cell
    metric: str
    bound: float
    at_most: bool = False

    def met(self, median: float) -> bool:
        """Whether a median keeps the bound."""
        return median <= self.bound if self.at_most else median >= self.bound


RATE, CPU, P50 = "requests_per_second", "cpu_seconds_per_1000", "p50_ms"
HTTP_CPU = "http_cpu_seconds_per_1000"


def _cell(scenario: str, connections: int = 64, contender: str = INKWELL) -> Cell:
    return Cell(scenario, contender, ALL_PARTITIONS, connections)


CREATE_TOLD, GET_TOLD = Cell("create-telemetry", INKWELL, 1, 64), Cell("get-telemetry", INKWELL, 1, 64)
TARGETS = (
    Target("create, 201: requests/s", _cell("create"), RATE, 4.5),
    Target("create, 201: CPU for a request", _cell("create"), CPU, 0.3, at_most=True),
    Target("create, 201, 16 connections: requests/s", _cell("create", 16), RATE, 2),
    Target("create, 201, 16 connections: CPU for a request", _cell("create", 16), CPU, 0.5, at_most=True),
    Target("create, 201, one connection: p50", _cell("create", 1), P50, 1.8, at_most=True),
    Target("create, 202: requests/s", _cell("create", 64, INKWELL_202), RATE, 5.5),
    Target("create, 202, 16 connections: requests/s", _cell("create", 16, INKWELL_202), RATE, 2.5),
    Target("create, 202, one connection: p50", _cell("create", 1, INKWELL_202), P50, 1.2, at_most=True),
    Target("replace: requests/s", _cell("replace"), RATE, 4.5),
    Target("replace, 16 connections: requests/s", _cell("replace", 16), RATE, 2),
    Target("replace, one connection: p50", _cell("replace", 1), P50, 1.5, at_most=True),
    Target("get one: requests/s", _cell("get"), RATE, 6),
    Target("get one, 16 connections: requests/s", _cell("get", 16), RATE, 4.5),
    Target("get one, one connection: p50", _cell("get", 1), P50, 0.5, at_most=True),
    Target("get one: CPU of the gateway against bare uvicorn", _cell("get-front"), HTTP_CPU, 3.5, at_most=True),
    Target("list 100, unchanged: requests/s", _cell("list"), RATE, 7),
    Target("list 100, changed: requests/s", _cell("list-changed"), RATE, 4.5),
    Target("search 100,000, one connection: requests/s", Cell("search", INKWELL, 1, 1), RATE, 10),
    Target("create, 202, Postgres 100 ms slower: requests/s", _cell("slow", 64, INKWELL_202), RATE, 25),
    Target("create, 201, telemetry against none: requests/s", CREATE_TOLD, RATE, 0.95),
    Target("create, 201, telemetry against none: CPU for a request", CREATE_TOLD, CPU, 1.05, at_most=True),
    Target("get one, telemetry against none: requests/s", GET_TOLD, RATE, 0.95),
    Target("get one, telemetry against none: CPU for a request", GET_TOLD, CPU, 1.05, at_most=True),
)


def judged(results: Results) -> str:
    """The targets as a Markdown table; those that were not measured say so."""
    rows = [_row(target, results) for target in TARGETS]
    return "| ratio to direct, unless stated | target | median (rounds) | result |\n|---|---|---|---|\n" + "".join(rows)


def _row(target: Target, results: Results) -> str:
    sign = "≤" if target.at_most else "≥"
    spread = results.ratio(target.cell, target.metric) if target.cell in results.cells() else None
    verdict = "not measured" if spread is None else "met" if target.met(spread.median) else "**not met**"
    return f"| {target.title} | {sign} {times(target.bound)} | {spread or ''} | {verdict} |\n"
