"""Links between a service and a server are cut, become slow or silent, or lose an answer."""

import asyncio
from typing import Any

from tests.faults.cluster import Cluster
from tests.faults.nemesis.engine import LONG, SHORT, Choice, Fault, Nemesis, gateways, workers
from tests.support.proxy import Proxy


async def link_is_cut(nemesis: Nemesis, _: Cluster[Any]) -> str:
    """Closes the connections of a link, and refuses new ones."""
    name, link = nemesis.some_link()
    async with link.lock:
        await link.cut()
        try:
            await asyncio.sleep(nemesis.seconds(LONG))
        finally:
            await link.start()
    return name


async def link_is_half_open(nemesis: Nemesis, _: Cluster[Any]) -> str:
    """Leaves the connections of a link silent for good."""
    name, link = nemesis.some_link()
    async with link.lock:
        link.strand()
        await asyncio.sleep(nemesis.seconds(SHORT))
    return name


async def link_is_frozen(nemesis: Nemesis, _: Cluster[Any]) -> str:
    """Holds everything on a link back for a while, as a network does that loses its packets."""
    name, link = nemesis.some_link()
    await held(link, nemesis.seconds(LONG))
    return name


async def link_is_slow(nemesis: Nemesis, _: Cluster[Any]) -> str:
    """Delays every piece of data on a link."""
    name, link = nemesis.some_link()
    await slowed(link, nemesis.seconds((0.02, 0.5)), nemesis.seconds(LONG))
    return name


async def commits_are_slow(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Delays every statement of the workers, while the gateways read at full speed."""
    delay, seconds = nemesis.seconds((0.02, 0.3)), nemesis.seconds(LONG)
    links = (link for worker in cluster.workers for name, link in worker.links.items() if name.startswith("database"))
    await asyncio.gather(*(slowed(link, delay, seconds) for link in links))
    return "workers"


def answers_are_lost(server: str, services: Choice) -> Fault:
    """Lets what a service sends to a server arrive, and closes the connections before it is answered."""

    async def lose(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
        service, seconds = nemesis.one_of(services(cluster)), nemesis.seconds(SHORT)
        links = [link for name, link in service.links.items() if name.startswith(server)]
        await asyncio.gather(*(hang_up(link, seconds) for link in links))
        return service.name

    return lose


async def replies_are_late(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Holds confirms and replies to a gateway back for a while; what it publishes arrives."""
    service = nemesis.one_of(cluster.gateways)
    seconds = nemesis.seconds(LONG)
    links = [link for name, link in service.links.items() if name.startswith("broker")]
    await asyncio.gather(*(held(link, seconds, "down") for link in links))
    return service.name


async def held(link: Proxy, seconds: float, *directions: str) -> None:
    """Holds the data on a link for a while, and then lets it pass."""
    async with link.lock:
        link.freeze(*directions)
        try:
            await asyncio.sleep(seconds)
        finally:
            link.thaw()


async def hang_up(link: Proxy, seconds: float) -> None:
    """Holds the answers on a link for a while, and then closes its connections."""
    async with link.lock:
        link.freeze("down")
        try:
            await asyncio.sleep(seconds)
        finally:
            await link.cut()
            link.thaw()
            await link.start()


async def slowed(link: Proxy, delay_seconds: float, seconds: float) -> None:
    """Delays every piece of data on the link for a while."""
    async with link.lock:
        link.delay_seconds = delay_seconds
        try:
            await asyncio.sleep(seconds)
        finally:
            link.delay_seconds = 0.0


FAULTS: dict[str, Fault] = {
    "link-cut": link_is_cut,
    "link-half-open": link_is_half_open,
    "link-frozen": link_is_frozen,
    "link-slow": link_is_slow,
    "commit-slow": commits_are_slow,
    "commit-in-doubt": answers_are_lost("database", workers),
    "confirm-lost": answers_are_lost("broker", gateways),
    "replies-late": replies_are_late,
}
