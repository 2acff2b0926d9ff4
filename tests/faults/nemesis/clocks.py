"""Wrong clocks of services; each has one of its own, which can be set while it runs, where libfaketime is installed."""

import asyncio
from collections.abc import Mapping
from itertools import product
from typing import Any

from tests.faults.cluster import Cluster
from tests.faults.nemesis.engine import LONG, Choice, Fault, Nemesis, gateways, workers
from tests.support.wrong_clocks import DAY, HOUR, LIBRARY, MONTH

WRONG_SECONDS = 10.0
OFFSETS = {"hour": HOUR, "day": DAY, "month": MONTH}
MISDATED = """
select count(*) from commands
where issued_at not between decided_at - interval '60 seconds' and decided_at + interval '1 second'
"""
"""Commands whose time is not Postgres': decided within a minute of their issue, and not before it."""
KINDS: Mapping[str, Choice] = {"gateway": gateways, "worker": workers}
DIRECTIONS = {"ahead": 1, "behind": -1}


def jumps(services: Choice, *offsets: float, seconds: tuple[float, float] = (WRONG_SECONDS, WRONG_SECONDS)) -> Fault:
    """Set a service's clock wrong for a while."""

    async def jump(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
        service = nemesis.one_of(services(cluster))
        async with service.lock:
            with cluster.servers.clocks[service.name].wrong(nemesis.pick(*offsets)):
                await asyncio.sleep(nemesis.seconds(seconds))
        return service.name

    return jump


def is_wrong_from_the_start(services: Choice, seconds: float) -> Fault:
    """Start a service with a wrong clock, which is corrected later."""

    async def start(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
        service = nemesis.one_of(services(cluster))
        async with service.lock:
            await service.process.stop()
            with cluster.servers.clocks[service.name].wrong(seconds):
                await service.process.start(ready=False)
                await asyncio.sleep(WRONG_SECONDS)
        return service.name

    return start


def checked(fault: Fault) -> Fault:
    """The fault, after which every command must have Postgres' time."""

    async def check(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
        target = await fault(nemesis, cluster)
        [(misdated,)] = await cluster.query(MISDATED)
        if misdated:
            nemesis.complain(f"I4: {misdated} commands have times that are not Postgres'")
        return target

    return check


def has_libfaketime() -> bool:
    """Whether the clocks of services can be set."""
    return LIBRARY is not None


EVERY_OFFSET = [sign * seconds for sign, seconds in product(DIRECTIONS.values(), OFFSETS.values())]
FAULTS: dict[str, Fault] = {
    f"{kind}-clock": jumps(services, *EVERY_OFFSET, seconds=LONG) for kind, services in KINDS.items()
}
"""Those of a run with all kinds of faults, in which commands may also wait for long."""
ALONE: dict[str, Fault] = {
    f"{kind}-clock-{unit}-{direction}": checked(jumps(services, sign * OFFSETS[unit]))
    for (kind, services), unit, (direction, sign) in product(KINDS.items(), OFFSETS, DIRECTIONS.items())
} | {
    f"{kind}-starts-month-{direction}": checked(is_wrong_from_the_start(services, sign * MONTH))
    for (kind, services), (direction, sign) in product(KINDS.items(), DIRECTIONS.items())
}
"""Those of the rig `clocks`."""
