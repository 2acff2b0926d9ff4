"""Injects faults into a cluster of Inkwell and judges the outcome: `python -m tests.faults`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom
from typing import Any

import uvloop

from tests.faults import plots, runs
from tests.faults.catching import catch
from tests.faults.mutations import mutations
from tests.faults.report import (
    MUTATIONS,
    README,
    RUNS,
    SUMMARY,
    TOTAL,
    caught,
    details,
    failovers,
    printed,
    sentence,
    summary,
    write,
)
from tests.faults.rigs import RIGS
from tests.faults.run import CLIENTS_PER_OWNER, run
from tests.faults.runs import Verdict


def main() -> int:
    """Returns 1 if a promise was broken, or if a mutation was not caught."""
    options = arguments()
    if options.mutations is not None:
        return break_the_product(options)
    done = [] if options.report else [judge(options, seed) for seed in options.seed]
    if options.report or options.write:
        kept = [each for each in runs.read() if each.source == runs.source() or not options.current]
        print(printed(kept))
        if options.write:
            write_pages(kept)
    else:
        print(printed(done))
    return 1 if any(each.violations for each in done) else 0


def judge(options: argparse.Namespace, seed: int) -> Verdict:
    """One run, which is kept if its figures are to be written."""
    faults = [name for name in options.faults or RIGS[options.rig].faults if name not in options.without]
    done = uvloop.run(run(options.seconds, seed, faults, times=options.times, **chosen(options)))
    print(failovers(done) if options.times else printed([done]))
    if options.write:
        runs.keep(done)
        if options.times:
            write(options.rig, failovers(done))
    return done


def write_pages(kept: Sequence[Verdict]) -> None:
    """Writes the figures of all these runs into docs/reliability.md and the README, and draws the recovery times."""
    write(SUMMARY, summary(kept))
    write(RUNS, f"{details(kept)}\n\n{plots.IMAGE}")
    write(TOTAL, sentence(kept) if kept else "", README)
    plots.draw(runs.Total(kept))


def break_the_product(options: argparse.Namespace) -> int:
    """Runs mutations; returns 1 if one was not caught."""
    wanted = [each for each in mutations() if not options.mutations or each.name in options.mutations]
    catches = [uvloop.run(catch(mutation, options.seed[0])) for mutation in wanted]
    print(caught(catches))
    if options.write:
        write(MUTATIONS, caught(catches))
    return 0 if all(each.is_caught for each in catches) else 1


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The rig, its clients, and the folder of its logs."""
    return {"rig": options.rig, "logs": options.logs, "clients_per_owner": options.clients}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    seed = SystemRandom().randrange(10**6)
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of each run")
    parser.add_argument("--seed", type=int, nargs="+", default=[seed], help="one run for each")
    parser.add_argument("--rig", choices=RIGS, default="single", help="the servers and their faults")
    parser.add_argument("--times", type=int, help="inject each fault so many times, alone, instead of for some seconds")
    parser.add_argument("--clients", type=int, default=CLIENTS_PER_OWNER, help="of each of the sixteen owners")
    parser.add_argument("--faults", nargs="*", default=[], metavar="FAULT", help="these alone")
    parser.add_argument("--without", nargs="*", default=[], metavar="FAULT", help="all but these")
    parser.add_argument("--mutations", nargs="*", metavar="NAME", help="break the product first: in these ways, or all")
    parser.add_argument("--logs", type=Path, help="a folder that keeps the logs of the services")
    parser.add_argument(
        "--write",
        action="store_true",
        help="keep the figures, add them to those of former runs, and put all into the pages",
    )
    parser.add_argument("--report", action="store_true", help="run nothing; with --write, write the pages anew")
    parser.add_argument("--current", action="store_true", help="leave out runs of other sources of the services")
    options = parser.parse_args()
    if unknown := {*options.faults, *options.without} - RIGS[options.rig].faults.keys():
        parser.error(f"{options.rig} has no {', '.join(unknown)}, but {', '.join(RIGS[options.rig].faults)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
