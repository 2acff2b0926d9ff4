"""Steady load without faults, while memory, files, tasks and sessions of the services are sampled.

`python -m tests.faults.soak --minutes 30` judges whether they stay the same once everything has warmed up.
"""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from random import SystemRandom
from statistics import fmean, median
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import matplotlib as mpl
import psutil
import structlog
import uvloop
from matplotlib import pyplot as plt

from gateway.auth.access_tokens import AccessTokens
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.contracts import Scope
from tests.faults.cluster import Cluster, Service, settings
from tests.faults.connection import Owner
from tests.faults.report import PAGE, write
from tests.faults.run import run
from tests.faults.runs import Verdict
from tests.support.accounts import bearer

SECTION = "soak"
FOLDER = PAGE.parent / "reliability"
SAMPLE_SECONDS, BROKER_SECONDS, BIN_SECONDS, PLOTTED_SECONDS = 5.0, 30.0, 60.0, 15.0
WARM_UP = 1 / 3
"""The share of the run that is not judged."""
GROWTH_MIB = 2.0
"""Memory may grow by less than this in the judged minutes."""
GROWTH, ERRORS = 1.0, 3.0
"""A count has grown if its fit rises by this and by so many standard errors."""
CALLERS = 10_000
"""As many as a gateway remembers."""
FULL = 0.98
SORTS = ("id", "-id", "created", "-created", "updated", "-updated", "title", "-title")
AT_ONCE = 16
SETTINGS = settings()
USERS = """
insert into users (name, folded_name) select 'soak ' || n, 'soak ' || n from generate_series(1, $1) as n returning id
"""
SESSIONS = "select count(*) from pg_stat_activity where usename in ('inkwell_gateway', 'inkwell_worker')"
OBJECTS = (
    "{length(rabbit_channel:list()), length(rabbit_networking:connections()),"
    ' length(rabbit_amqqueue:consumers_all(<<"/">>))}.'
)
PANELS = {
    "MiB": "resident memory, MiB",
    "files": "open files",
    "tasks": "tasks",
    "threads": "threads",
    "sessions": "sessions of Postgres",
    "objects": "objects of RabbitMQ",
}
COLOURS = ("#1f4e9c", "#3aa6a0", "#c44536", "#d9a441", "#7b3f9d")

log = structlog.get_logger()


@dataclass(frozen=True)
class Fit:
    """A straight line through the judged minutes of a figure."""

    figure: str
    name: str
    mean: float
    rise: float
    """From the first judged minute to the last."""
    error: float
    """The standard error of the rise."""

    @property
    def is_flat(self) -> bool:
        """Whether it stays the same, apart from noise."""
        if self.figure == "MiB":
            return self.rise < GROWTH_MIB
        return self.rise < max(GROWTH, ERRORS * self.error)


@dataclass
class Samples:
    """What was measured, by figure and by name: seconds since the load began, and the value."""

    values: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)

    def add(self, figure: str, name: str, seconds: float, value: float) -> None:
        """Add a value."""
        self.values.setdefault(figure, {}).setdefault(name, []).append((round(seconds, 1), round(value, 2)))

    def bins(self, figure: str, name: str, width: float = BIN_SECONDS) -> list[tuple[float, float]]:
        """Return the mean of each minute, or the median of memory: to hash a password takes 64 MiB for a moment."""
        average = median if figure == "MiB" else fmean
        binned: dict[int, list[float]] = {}
        for seconds, value in self.values[figure][name]:
            binned.setdefault(int(seconds // width), []).append(value)
        return [((number + 0.5) * width, average(values)) for number, values in sorted(binned.items())]

    def fits(self) -> Iterator[Fit]:
        """Yield the fit of each figure, without the time in which everything warms up."""
        for kind, names in self.values.items():
            for name in names:
                bins = self.bins(kind, name)
                yield fit(kind, name, bins[int(len(bins) * WARM_UP) :])


def fit(figure: str, name: str, points: Sequence[tuple[float, float]]) -> Fit:
    """Return the least-squares line through the points."""
    xs, ys = zip(*points, strict=True)
    x, y, duration = fmean(xs), fmean(ys), xs[-1] - xs[0]
    spread = sum((each - x) ** 2 for each in xs)
    if len(points) < 3:
        return Fit(figure, name, y, 0.0, 0.0)
    slope = sum((each - x) * value for each, value in points) / spread
    residuals = sum((value - y - slope * (each - x)) ** 2 for each, value in points)
    error = (residuals / (len(points) - 2) / spread) ** 0.5
    return Fit(figure, name, y, slope * duration, error * duration)


class Observer:
    """Fills the caches of a cluster, and samples it for a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.samples = Samples()

    async def watch(self, cluster: Cluster[Any]) -> None:
        """Sample until the time is over; the caches are filled at first."""
        now = asyncio.get_running_loop().time
        began = now()
        async with aiohttp.ClientSession() as client, asyncio.TaskGroup() as tasks:
            filling = tasks.create_task(fill_caches(cluster, client, began + self._seconds * WARM_UP))
            broker = tasks.create_task(self._watch_broker(cluster, began))
            while (seconds := now() - began) < self._seconds:
                await self._sample(cluster, client, seconds)
                await asyncio.sleep(max(0.0, SAMPLE_SECONDS - (now() - began - seconds)))
            broker.cancel()
            await filling

    async def _sample(self, cluster: Cluster[Any], client: aiohttp.ClientSession, seconds: float) -> None:
        for service in cluster.services:
            process = psutil.Process(service.process.pid)
            self.samples.add("MiB", service.name, seconds, process.memory_info().rss / 2**20)
            self.samples.add("files", service.name, seconds, process.num_fds())
            self.samples.add("threads", service.name, seconds, process.num_threads())
            tasks = await metric_of(service, client, "inkwell_event_loop_tasks")
            self.samples.add("tasks", service.name, seconds, tasks)
        [[sessions]] = await cluster.query(SESSIONS)
        self.samples.add("sessions", "both services", seconds, sessions)

    async def _watch_broker(self, cluster: Cluster[Any], began: float) -> None:
        while True:
            counts = re.findall(r"\d+", await cluster.servers.rabbitmqctl("eval", OBJECTS))
            for name, count in zip(("channels", "connections", "consumers"), counts, strict=True):
                self.samples.add("objects", name, asyncio.get_running_loop().time() - began, int(count))
            await asyncio.sleep(BROKER_SECONDS)


async def metric_of(service: Service, client: aiohttp.ClientSession, name: str) -> float:
    """Return the value of one of the service's metrics."""
    port = service.process.environment["INKWELL_METRICS_PORT"]
    async with client.get(f"http://127.0.0.1:{port}/metrics") as answer:
        found = re.search(rf"^{name} (\S+)$", await answer.text(), re.MULTILINE)
    assert found, name
    return float(found[1])


async def fill_caches(cluster: Cluster[Any], client: aiohttp.ClientSession, deadline: float) -> None:
    """Fill what the services keep in memory up to a limit: callers, owners, pages of lists, and a parser's strings."""
    connection = await asyncpg.connect(cluster.database_url)
    owners = [row["id"] for row in await connection.fetch(USERS, CALLERS)]
    await connection.close()
    tokens = iter([bearer(token) for token in iter_tokens(owners)])
    now = asyncio.get_running_loop().time

    async def visit() -> None:
        for headers in tokens:
            if now() > deadline:
                return
            for gateway in cluster.clients:
                note = {"title": "soak", "description": f"soak {uuid4()}"}  # the checker wants no text twice
                async with gateway.post("/notes", json=note, headers=headers) as answer:
                    await answer.read()
                async with gateway.get("/notes?limit=20", headers=headers) as answer:
                    await answer.read()

    async with asyncio.TaskGroup() as visits:
        for _ in range(AT_ONCE):
            visits.create_task(visit())
    log.info("callers and owners are cached", seconds_left=round(deadline - now()))
    for gateway, session in zip(cluster.gateways, cluster.clients, strict=True):
        await fill_pages(gateway, session, client, cluster.owners, deadline)
    log.info("pages are cached", seconds_left=round(deadline - now()))


def iter_tokens(owners: Sequence[int]) -> Iterator[str]:
    """Yield an access token of each owner."""
    common = SETTINGS | {"INKWELL_DATABASE_URL": "postgresql://x@x/x", "INKWELL_BROKER_URL": "amqp://x@x/"}
    known = {name.removeprefix("INKWELL_").lower(): value for name, value in common.items()}
    tokens = AccessTokens(GatewaySettings.model_validate(known), Clock())
    return (tokens.issue(owner, 1, frozenset(Scope)) for owner in owners)


async def fill_pages(
    gateway: Service,
    session: aiohttp.ClientSession,
    client: aiohttp.ClientSession,
    owners: Sequence[Owner],
    deadline: float,
) -> None:
    """Read lists, each with a query of its own, until the gateway drops those that it read first."""
    limit_bytes = GatewaySettings.model_fields["kept_pages_bytes"].default * FULL

    async def read(query: str, owner: Owner) -> None:
        async with session.get(query, headers=owner.headers) as answer:
            await answer.read()

    for limit, sort in product(range(20, 1000), SORTS):
        await asyncio.gather(*(read(f"/notes?limit={limit}&sort={sort}", owner) for owner in owners))
        is_full = await metric_of(gateway, client, "inkwell_kept_pages_bytes") > limit_bytes
        if is_full or asyncio.get_running_loop().time() > deadline:
            break


async def soak(minutes: float, seed: int, clients_per_owner: int) -> tuple[Samples, Verdict]:
    """Return what was measured, and what the checker of the clients' history says."""
    observer = Observer(minutes * 60)
    verdict = await run(0, seed, watch=observer.watch, clients_per_owner=clients_per_owner)
    # Filled caches look like a leak; what grows after that is judged by the samples.
    violations = [each for each in verdict.violations if not each.startswith("I9")]
    return observer.samples, replace(verdict, violations=violations)


def judge(samples: Samples, *, judges_memory: bool = True) -> list[str]:
    """Return what has grown."""
    return [
        f"{each.figure} of {each.name}: {each.rise:+.2f} ± {each.error:.2f} from {each.mean:.1f}"
        for each in samples.fits()
        if not each.is_flat and (judges_memory or each.figure != "MiB")
    ]


def describe(samples: Samples, verdict: Verdict, minutes: float) -> str:
    """Return the section of docs/reliability.md."""
    rows = [
        f"| {PANELS[each.figure]} | {each.name} | {each.mean:.1f} | {each.rise:+.2f} ± {each.error:.2f} | "
        f"{'' if each.is_flat else '**grows**'} |"
        for each in samples.fits()
    ]
    answers, judged = sum(verdict.answers.values()), f"minute {minutes * WARM_UP:.0f} to {minutes:.0f}"
    head = (
        f"{minutes:.0f} minutes, seed {verdict.seed}: {verdict.commands:,} commands, {answers:,} answers, "
        f"{len(verdict.violations)} violations.\n\n![What was sampled, over time](reliability/{SECTION}.svg)\n\n"
        f"| figure | of | mean | rise from {judged} | |\n|---|---|---:|---:|---|\n"
    )
    return head + "\n".join([*rows, *(f"\n- {violation}" for violation in verdict.violations[:20])])


def draw(samples: Samples, path: Path) -> None:
    """Write a plot with a panel for each figure."""
    path.parent.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "inkwell", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}):
        drawing, panels = plt.subplots(2, 3, figsize=(10, 5.5), layout="constrained")
        for axes, (name, label) in zip(panels.flat, PANELS.items(), strict=True):
            axes.set(title=label, xlabel="minutes")
            for colour, process in zip(COLOURS, samples.values[name], strict=False):
                seconds, values = zip(*samples.bins(name, process, PLOTTED_SECONDS), strict=True)
                axes.plot([each / 60 for each in seconds], values, color=colour, linewidth=1, label=process)
            axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.1)
            axes.legend(fontsize=7, frameon=False)
        drawing.savefig(path, metadata={"Date": None})  # the same bytes for the same figures
        plt.close(drawing)


def main() -> int:
    """Returns 1 if something grows, or a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6))
    parser.add_argument("--clients", type=int, default=1, help="clients of each owner")
    parser.add_argument("--samples", type=Path, help="a file for all that was measured, as JSON")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    options = parser.parse_args()
    samples, verdict = uvloop.run(soak(options.minutes, options.seed, options.clients))
    text = describe(samples, verdict, options.minutes)
    sys.stdout.write(f"{text}\n")
    if options.samples:
        options.samples.write_text(json.dumps(samples.values))
    if options.write:
        write(SECTION, text)
        draw(samples, FOLDER / f"{SECTION}.svg")
    return 1 if judge(samples) or verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
