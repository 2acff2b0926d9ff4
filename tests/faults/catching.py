"""Runs each mutation of the product until the checker finds it out."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from tests.faults.mutations import Mutation, applied
from tests.faults.run import run

log = structlog.get_logger()

CATCH_SECONDS, SLICE_SECONDS = 120.0, 30.0
"""So long the nemesis may take to bring a mutation out; after each slice the checker looks."""


@dataclass(frozen=True)
class Catch:
    """What the checker has found of a mutation, and how many seconds of nemesis it took."""

    mutation: Mutation
    seconds: float
    violations: list[str]

    @property
    def promises(self) -> list[str]:
        """Those that were found broken."""
        found = {violation.partition(":")[0] for violation in self.violations}
        return sorted(found, key=lambda promise: (len(promise), promise))  # I2 before I10

    @property
    def is_caught(self) -> bool:
        """Whether one of the promises was, that the mutation is meant to break."""
        return not set(self.promises).isdisjoint(self.mutation.promises)


async def catch(mutation: Mutation, seed: int) -> Catch:
    """Runs the broken product until the checker finds it out, or the time is over."""
    caught = Catch(mutation, 0.0, [])
    with TemporaryDirectory(prefix=f"inkwell-{mutation.name}-") as folder:
        tree = applied(mutation, Path(folder))
        while not caught.is_caught and caught.seconds < CATCH_SECONDS:
            verdict = await run(SLICE_SECONDS, seed, mutation.faults, tree=tree)
            caught = Catch(mutation, caught.seconds + SLICE_SECONDS, verdict.violations)
            log.info("judged", mutation=mutation.name, caught=caught.is_caught, found=caught.promises)
            seed += 1
    return caught
