"""Injects faults into a cluster of Inkwell and judges the outcome: `python -m tests.faults`."""

import argparse
import sys
from pathlib import Path
from random import SystemRandom
from typing import Any

import uvloop

from tests.faults.catching import catch
from tests.faults.mutations import mutations
from tests.faults.report import caught, failovers, printed, write
from tests.faults.rigs import RIGS
from tests.faults.run import run


def main() -> int:
    """Returns 1 if a promise was broken, or if a mutation was not caught."""
    options = arguments()
    if options.times:
        verdict = uvloop.run(run(0, options.seed[0], options.faults, **chosen(options), times=options.times))
        section, text, good = options.rig, failovers(verdict), not verdict.violations
    elif options.mutations is None:
        verdicts = [uvloop.run(run(options.seconds, seed, options.faults, **chosen(options))) for seed in options.seed]
        section, text, good = "runs", printed(verdicts), not any(verdict.violations for verdict in verdicts)
    else:
        wanted = [each for each in mutations() if not options.mutations or each.name in options.mutations]
        catches = [uvloop.run(catch(mutation, options.seed[0])) for mutation in wanted]
        section, text, good = "mutations", caught(catches), all(each.is_caught for each in catches)
    print(text)
    if options.write:
        write(section, text)
    return 0 if good else 1


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The rig and the folder of its logs."""
    return {"rig": options.rig, "logs": options.logs}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    seed = SystemRandom().randrange(10**6)
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of each run")
    parser.add_argument("--seed", type=int, nargs="+", default=[seed], help="one run for each")
    parser.add_argument("--rig", choices=RIGS, default="single", help="the servers and their faults")
    parser.add_argument("--times", type=int, help="inject each fault so many times, alone, instead of for some seconds")
    parser.add_argument("--faults", nargs="*", default=[], metavar="FAULT", help="these alone")
    parser.add_argument("--mutations", nargs="*", metavar="NAME", help="break the product first: in these ways, or all")
    parser.add_argument("--logs", type=Path, help="a folder that keeps the logs of the services")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    options = parser.parse_args()
    if unknown := set(options.faults) - RIGS[options.rig].faults.keys():
        parser.error(f"{options.rig} has no {', '.join(unknown)}, but {', '.join(RIGS[options.rig].faults)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
