"""The results of a run and their statistics: ratios within each round, their median and their spread."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from bench.scenarios import SCENARIOS, Cell


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contender's result in one round."""

    cell: Cell
    round: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_seconds_per_1000: float
    answered: int
    """The number of requests answered with 2xx."""
    refused: int
    broken: int
    written: int | None
    """The number of notes created or replaced; None without writes."""
    uncounted: int
    """Writes allowed beyond those answered: requests in flight when the load ended."""
    http_cpu_seconds_per_1000: float = 0.0
    """The processor time of the process that answers the requests."""

    @property
    def problem(self) -> str | None:
        """Why the measurement is invalid, if it is."""
        if self.refused or self.broken or not self.answered:
            return f"{self.refused} refused, {self.broken} broken, {self.answered} answered"
        if self.written is not None and not 0 <= self.written - self.answered <= self.uncounted:
            return f"{self.answered} answered, but {self.written} written"
        return None


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over the rounds, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Over at least one value."""
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def times(factor: float) -> str:
    """A ratio in readable form."""
    return f"{factor:g} ×"  # noqa: RUF001 - the sign is meant


@dataclass(frozen=True, slots=True)
class Series:
    """One contender under a fault, in slices of time."""

    trouble: str
    contender: str
    seconds: list[float]
    """The start of each slice, after the start of the load."""
    answers: dict[int, list[float]]
    """Responses per second, by status."""
    p50_ms: list[float | None]
    """The latency of the responses in the slice; None without responses."""
    p99_ms: list[float | None]
    accepted: int
    """The number of requests answered with 2xx."""
    written: int
    settled_seconds: float
    """How long after the end of the load the last write was stored."""

    @property
    def problem(self) -> str | None:
        """What was lost, if anything; writes without a response, or with an unknown outcome, may be stored."""
        return f"{self.accepted} accepted, but {self.written} written" if self.written < self.accepted else None


@dataclass(frozen=True, slots=True)
class Scale:
    """The duration of one read in one round, in milliseconds, alone on one connection."""

    read: str
    round: int
    small: tuple[float, float]
    """The p50 and the p95 with a thousand notes."""
    large: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run."""

    machine: dict[str, str]
    rounds: int
    seconds: int
    measurements: list[Measurement]
    troubles: list[Series]
    scales: list[Scale] = field(default_factory=list)

    def cells(self) -> list[Cell]:
        """The measured cells in order."""
        return list(dict.fromkeys(each.cell for each in self.measurements))

    def spread(self, cell: Cell, metric: str) -> Spread:
        """A metric of the cell."""
        return Spread.of(self._rounds(cell, metric).values())

    def ratio(self, cell: Cell, metric: str) -> Spread | None:
        """A cell's metric relative to the scenario's base in the same rounds; None without responses of the base."""
        to = SCENARIOS[cell.scenario].base
        base = next((each for each in self.cells() if _same_load(each, cell) and each.contender == to), None)
        if base is None:
            return None
        bases = self._rounds(base, metric)
        ratios = [value / bases[number] for number, value in self._rounds(cell, metric).items() if bases[number]]
        return Spread.of(ratios) if ratios else None

    def _rounds(self, cell: Cell, metric: str) -> dict[int, float]:
        return {each.round: getattr(each, metric) for each in self.measurements if each.cell == cell}

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TypeAdapter(Results).dump_json(self, indent=1) + b"\n")

    @staticmethod
    def load(path: Path) -> "Results":
        """The results that `save` has written."""
        return TypeAdapter(Results).validate_json(path.read_bytes())


def _same_load(one: Cell, other: Cell) -> bool:
    return (one.scenario, one.connections) == (other.scenario, other.connections)
