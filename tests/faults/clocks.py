"""Wrong clocks: the plain servers, a settable clock for each service, and the faults that set it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.faults.cluster import Cluster, Service
from tests.faults.nemesis import Fault, Nemesis
from tests.faults.servers import SingleServers, single_servers
from tests.support.wrong_clocks import DAY, HOUR, MONTH, SettableClock

WRONG_SECONDS = 10.0
OFFSETS = {"hour": HOUR, "day": DAY, "month": MONTH}
MISDATED = """
select count(*) from commands
where issued_at not between decided_at - interval '60 seconds' and decided_at + interval '1 second'
"""
"""Commands whose time is not Postgres': decided within a minute of their issue, and not before it."""


@dataclass
class ClockedServers(SingleServers):
    """One server of each kind, and the clocks of the services."""

    folder: Path
    clocks: dict[str, SettableClock] = field(default_factory=dict)

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment that gives a service's process its own clock."""
        self.clocks[service] = SettableClock(self.folder / service)
        return self.clocks[service].environment


@asynccontextmanager
async def clocked_servers() -> AsyncIterator[ClockedServers]:
    """Servers for services with settable clocks."""
    with TemporaryDirectory(prefix="inkwell-clocks-") as folder:
        async with single_servers() as single:
            yield ClockedServers(single.services, single.rabbitmq, single.postgres, Path(folder))


Services = Callable[[Cluster[Any]], Sequence[Service]]


def jumps(services: Services, seconds: float) -> Fault:
    """Set a service's clock wrong for a while."""

    async def jump(nemesis: Nemesis, cluster: Cluster[ClockedServers]) -> str:
        service = nemesis.one_of(services(cluster))
        async with service.lock:
            with cluster.servers.clocks[service.name].wrong(seconds):
                await asyncio.sleep(WRONG_SECONDS)
        await look_at_times(nemesis, cluster)
        return service.name

    return jump


def is_wrong_from_the_start(services: Services, seconds: float) -> Fault:
    """Start a service with a wrong clock, which is corrected later."""

    async def start(nemesis: Nemesis, cluster: Cluster[ClockedServers]) -> str:
        service = nemesis.one_of(services(cluster))
        async with service.lock:
            await service.process.stop()
            with cluster.servers.clocks[service.name].wrong(seconds):
                await service.process.start(ready=False)
                await asyncio.sleep(WRONG_SECONDS)
        await look_at_times(nemesis, cluster)
        return service.name

    return start


async def look_at_times(nemesis: Nemesis, cluster: Cluster[ClockedServers]) -> None:
    """Record a complaint if a command's time is not Postgres'."""
    [(misdated,)] = await cluster.query(MISDATED)
    if misdated:
        nemesis.complain(f"I4: {misdated} commands have times that are not Postgres'")


KINDS: Mapping[str, Services] = {
    "gateway": lambda cluster: cluster.gateways,
    "worker": lambda cluster: cluster.workers,
}
DIRECTIONS = {"ahead": 1, "behind": -1}
FAULTS: dict[str, Fault] = {
    f"{kind}-clock-{unit}-{direction}": jumps(services, sign * OFFSETS[unit])
    for (kind, services), unit, (direction, sign) in product(KINDS.items(), OFFSETS, DIRECTIONS.items())
} | {
    f"{kind}-starts-month-{direction}": is_wrong_from_the_start(services, sign * MONTH)
    for (kind, services), (direction, sign) in product(KINDS.items(), DIRECTIONS.items())
}
