"""Chooses faults by a seed, injects them alone or two at once, and then lets everything recover."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any

import structlog

from tests.faults.cluster import Cluster, Service
from tests.faults.history import Disturbance, History
from tests.support.proxy import Proxy

RECOVERY_LIMIT_SECONDS = 30.0
SHORT, LONG, CALM = (0.2, 2.0), (2.0, 7.0), (1.0, 5.0)

log = structlog.get_logger()


class Nemesis:
    """Injects faults round by round; each kind once before any is repeated."""

    def __init__(self, cluster: Cluster[Any], history: History, seed: int, faults: "Mapping[str, Fault]") -> None:
        self._cluster = cluster
        self._history = history
        self._random = Random(seed)  # noqa: S311 - no secret
        self._faults = faults
        self._deck: list[str] = []
        self._round = 0
        self.unreadable = 0
        """The number of unreadable messages that it has published."""

    async def run(self, seconds: float) -> None:
        """Injects faults for this long, and until everything has recovered from the last round."""
        ends = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < ends:
            await self._disturb([self._next() for _ in range(self._random.choice((1, 1, 2)))])

    async def run_each(self, times: int) -> None:
        """Injects each fault this many times, alone, in shuffled order."""
        names = [*self._faults] * times
        for name in self._random.sample(names, len(names)):
            await self._disturb([name])

    def complain(self, what: str) -> None:
        """Records a violation."""
        self._history.complaints.append(what)

    def seconds(self, bounds: tuple[float, float]) -> float:
        """A random duration between the two."""
        return self._random.uniform(*bounds)

    def happens(self, probability: float) -> bool:
        """Whether something random happens."""
        return self._random.random() < probability

    def pick(self, *choices: Any) -> Any:
        """One of several, at random."""
        return self._random.choice(choices)

    def some_link(self, server: str = "") -> tuple[str, Proxy]:
        """A random link of a service, to Postgres or to the broker."""
        service = self._random.choice(self._cluster.services)
        links = [name for name in service.links if name.startswith(server)]
        name = self._random.choice(links)
        return f"{service.name} to {name}", service.links[name]

    def one_of(self, services: Sequence[Service]) -> Service:
        """A random service."""
        return self._random.choice(services)

    def partition(self) -> int:
        """A random partition."""
        return self._random.randrange(self._cluster.partitions)

    def _next(self) -> str:
        if not self._deck:
            self._deck = self._random.sample([*self._faults], len(self._faults))
        return self._deck.pop()

    async def _disturb(self, names: list[str]) -> None:
        """One round: the faults at once, the recovery, and a calm period."""
        self._round += 1
        async with asyncio.TaskGroup() as tasks:
            for delay, name in enumerate(names):
                tasks.create_task(self._inject(name, delay))
        await self._recover(names)
        await self._cluster.servers.repair()
        await asyncio.sleep(self.seconds(CALM))

    async def _inject(self, name: str, delay: float) -> None:
        await asyncio.sleep(delay * self.seconds(SHORT))
        disturbance = Disturbance(name, "", asyncio.get_running_loop().time(), self._round)
        self._history.disturbances.append(disturbance)
        disturbance.target = await self._faults[name](self, self._cluster)
        disturbance.ended = asyncio.get_running_loop().time()

    async def _recover(self, names: list[str]) -> None:
        seconds, last = await self._cluster.recovered()
        for service in self._cluster.services:
            for link in service.links.values():
                link.bury()
        self._history.recoveries.append(seconds)
        log.info("recovered", faults=names, seconds=round(seconds, 1), last=last)
        if seconds > RECOVERY_LIMIT_SECONDS:
            self.complain(f"I8: not recovered {seconds:.0f} s after {' and '.join(names)}: {', '.join(last)}")


Fault = Callable[[Nemesis, Cluster[Any]], Awaitable[str]]
"""Breaks something for a while and mends it, also when cancelled; returns the target."""
Choice = Callable[[Cluster[Any]], Sequence[Service]]
"""The services that a fault may hit."""


def gateways(cluster: Cluster[Any]) -> Sequence[Service]:
    """The gateways."""
    return cluster.gateways


def workers(cluster: Cluster[Any]) -> Sequence[Service]:
    """The workers."""
    return cluster.workers
