"""Breaks a cluster of Inkwell for a while and judges what came of it: `python -m tests.faults`."""

import argparse
import asyncio
import sys
from pathlib import Path
from random import SystemRandom

from tests.faults.nemesis import FAULTS
from tests.faults.report import printed, write
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
    options = parser.parse_args()
    verdicts = [asyncio.run(run(options.seconds, seed, options.faults, logs=options.logs)) for seed in options.seed]
    print(printed(verdicts))
    if options.write:
        write(verdicts)
    return 1 if any(verdict.violations for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
