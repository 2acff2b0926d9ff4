"""Runs each mutation of the product until the checker catches it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from tests.faults.mutations import Mutation, applied
from tests.faults.run import run

log = structlog.get_logger()

CATCH_SECONDS, SLICE_SECONDS = 120.0, 30.0
"""The most time that the nemesis may take to expose a mutation; the checker runs after each slice."""


@dataclass(frozen=True)
class Catch:
    """What the checker found for a mutation, and after how many seconds of nemesis."""

    mutation: Mutation
    seconds: float
    violations: Sequence[str]

    @property
    def promises(self) -> list[str]:
        """The promises that were broken."""
        found = {violation.partition(":")[0] for violation in self.violations}
        return sorted(found, key=lambda promise: (len(promise), promise))  # I2 before I10

    @property
    def is_caught(self) -> bool:
        """Whether one of the promises that the mutation is meant to break was broken."""
        return not set(self.promises).isdisjoint(self.mutation.promises)


async def catch(mutation: Mutation, seed: int) -> Catch:
    """Runs the broken product until the checker catches it or the time is over."""
    caught = Catch(mutation, 0.0, [])
    with TemporaryDirectory(prefix=f"inkwell-{mutation.name}-") as folder:
        tree = applied(mutation, Path(folder))
        while not caught.is_caught and caught.seconds < CATCH_SECONDS:
            verdict = await run(SLICE_SECONDS, seed, mutation.faults, tree=tree)
            caught = Catch(mutation, caught.seconds + SLICE_SECONDS, verdict.violations)
            log.info("judged", mutation=mutation.name, caught=caught.is_caught, found=caught.promises)
            seed += 1
    return caught
