"""What Inkwell is meant to reach, each against the direct way in the same run, or against itself without telemetry."""

from dataclasses import dataclass

from bench.contenders import INKWELL, INKWELL_202
from bench.results import Results, times
from bench.scenarios import Cell


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
CREATE, CREATE_202 = Cell("create", INKWELL, 1, 64), Cell("create", INKWELL_202, 1, 64)
CREATE_TOLD, GET_TOLD = Cell("create-telemetry", INKWELL, 1, 64), Cell("get-telemetry", INKWELL, 1, 64)
GET_FRONT = Cell("get-front", INKWELL, 64, 64)
TARGETS = (
    Target("create, 201: requests/s", CREATE, RATE, 3.5),
    Target("create, 201: CPU for a request", CREATE, CPU, 0.35, at_most=True),
    Target("create, 202: requests/s", CREATE_202, RATE, 4),
    Target("replace: requests/s", Cell("replace", INKWELL, 1, 64), RATE, 3.5),
    Target("get one, 64 owners: requests/s", Cell("get", INKWELL, 64, 64), RATE, 6),
    Target("get one, 64 owners, 16 connections: requests/s", Cell("get", INKWELL, 64, 16), RATE, 4.5),
    Target("get one, 64 owners, one connection: p50", Cell("get", INKWELL, 64, 1), P50, 0.5, at_most=True),
    Target(
        "get one: CPU of the gateway against bare uvicorn",
        Cell("get-front", INKWELL, 64, 64),
        HTTP_CPU,
        3.5,
        at_most=True,
    ),
    Target("list 100, unchanged, 64 owners: requests/s", Cell("list", INKWELL, 64, 64), RATE, 7),
    Target("list 100, changed, 64 owners: requests/s", Cell("list-changed", INKWELL, 64, 64), RATE, 4.5),
    Target("search 100,000, one connection: requests/s", Cell("search", INKWELL, 1, 1), RATE, 10),
    Target("create, 201, one connection: p50", Cell("create", INKWELL, 1, 1), P50, 1.6, at_most=True),
    Target("create, 202, Postgres 100 ms slower: requests/s", Cell("slow", INKWELL_202, 1, 64), RATE, 40),
    Target("create, 201, telemetry against none: requests/s", CREATE_TOLD, RATE, 0.95),
    Target("create, 201, telemetry against none: CPU for a request", CREATE_TOLD, CPU, 1.05, at_most=True),
    Target("get one, telemetry against none: requests/s", GET_TOLD, RATE, 0.95),
    Target("get one, telemetry against none: CPU for a request", GET_TOLD, CPU, 1.05, at_most=True),
)


def judged(results: Results) -> str:
    """The targets as a Markdown table; those that were not measured say so."""
    rows = [_row(target, results) for target in TARGETS]
    return "| against the direct way, or as said | target | median (rounds) | |\n|---|---|---|---|\n" + "".join(rows)


def _row(target: Target, results: Results) -> str:
    sign = "≤" if target.at_most else "≥"
    spread = results.ratio(target.cell, target.metric) if target.cell in results.cells() else None
    verdict = "not measured" if spread is None else "met" if target.met(spread.median) else "**not met**"
    return f"| {target.title} | {sign} {times(target.bound)} | {spread or ''} | {verdict} |\n"
