"""Breaks a cluster of Inkwell for a while and judges what came of it: `python -m tests.faults`."""

import argparse
import sys
from pathlib import Path
from random import SystemRandom

import uvloop

from tests.faults.mutations import catch, mutations
from tests.faults.nemesis import FAULTS
from tests.faults.report import caught_table, printed, write
from tests.faults.run import run


def main() -> int:
    """1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of each run")
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[SystemRandom().randrange(10**6)], help="one run for each"
    )
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=[], help="these alone")
    parser.add_argument("--logs", type=Path, help="a folder that keeps the logs of the services")
    parser.add_argument("--write", action="store_true", help="docs/reliability.md")
    parser.add_argument("--mutations", nargs="*", metavar="NAME", help="break the product first: these, or all")
    options = parser.parse_args()
    if options.mutations is not None:
        caught = uvloop.run(all_caught(options.mutations, options.seed[0]))
        return 0 if caught else 1
    verdicts = [uvloop.run(run(options.seconds, seed, options.faults, logs=options.logs)) for seed in options.seed]
    print(printed(verdicts))
    if options.write:
        write(verdicts)
    return 1 if any(verdict.violations for verdict in verdicts) else 0


async def all_caught(names: list[str], seed: int) -> bool:
    """Whether the checker finds something wrong with each mutation in time."""
    chosen = [mutation for mutation in mutations() if not names or mutation.name in names]
    catches = [await catch(mutation, seed) for mutation in chosen]
    print(*caught_table(catches), sep="\n")
    return all(each.violations for each in catches)


if __name__ == "__main__":
    sys.exit(main())
