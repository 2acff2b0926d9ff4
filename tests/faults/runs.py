"""The figures of all runs, kept in a file, so that `make faults` adds up over runs, seeds and rigs."""

import json
import subprocess
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from dev.backend import ROOT
from tests.faults.availability import Availability, Share
from tests.faults.mutations import PACKAGES

KEPT = ROOT / "docs" / "reliability" / "runs.jsonl"
BROKEN = {"lost": ("I1",), "duplicated": ("I2",), "reordered": ("I6",), "untrue": ("I3", "I4", "I5")}
"""The promises under each heading."""
SHOWN = 20
"""How many violations of a run are printed."""


@dataclass(frozen=True)
class Verdict:
    """What one run has found, and on which source."""

    commit: str
    source: str
    """A hash of the services' source."""
    rig: str
    seed: int
    seconds: float
    commands: int
    faults: Mapping[str, int]
    """How often each was injected."""
    answers: Mapping[str, int]
    recoveries: Mapping[str, Sequence[float]]
    availability: Mapping[str, Availability]
    lag_seconds: float
    violations: Sequence[str]


class Total:
    """The sum of several runs."""

    def __init__(self, runs: Sequence[Verdict]) -> None:
        self.runs = runs
        self.commands = sum(run.commands for run in runs)
        self.faults = sum((Counter(run.faults) for run in runs), Counter[str]())
        self.answers = sum((Counter(run.answers) for run in runs), Counter[str]())
        self.violations = [violation for run in runs for violation in run.violations]
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        """The seconds of each recovery, by fault."""
        self.availability: dict[str, Availability] = defaultdict(Availability)
        for run in runs:
            for name, seconds in run.recoveries.items():
                self.recoveries[name] += seconds
            for name, each in run.availability.items():
                self.availability[name] += each

    def broken(self) -> dict[str, int]:
        """How many violations there are under each heading, and how many others."""
        counts = Counter(violation.partition(":")[0] for violation in self.violations)
        under = {heading: sum(counts.pop(promise, 0) for promise in those) for heading, those in BROKEN.items()}
        return under | {"others": counts.total()}


def read() -> list[Verdict]:
    """The runs that are kept."""
    return [run_of(json.loads(line)) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def keep(run: Verdict) -> None:
    """Add a run to those that are kept."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    with KEPT.open("a") as kept:
        kept.write(f"{json.dumps(vars(run), default=asdict, sort_keys=True)}\n")


def run_of(record: dict[str, Any]) -> Verdict:
    """A run from its JSON."""
    shares = {
        name: Availability(**{kind: Share(**counts) for kind, counts in each.items()})
        for name, each in record["availability"].items()
    }
    return Verdict(**record | {"availability": shares})


@cache
def commit() -> str:
    """The current commit, abbreviated, with a plus if the files differ from it; empty without git."""
    command = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip()


@cache
def source(tree: Path = ROOT) -> str:
    """A hash of the services' source."""
    files = sorted(path for package in PACKAGES for path in (tree / package).rglob("*.py"))
    return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
