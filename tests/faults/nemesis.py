"""Injects faults, chosen by a seed, alone and overlapping, and then lets everything recover."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any

import structlog
from aio_pika import DeliveryMode, Message

from shared.broker import BROKER_ERRORS
from shared.contracts import COMMANDS_CONTENT_TYPE
from tests.faults.cluster import COPIES, PREFIX, Cluster, Service
from tests.faults.history import Disturbance, History
from tests.faults.pruning import outcomes_are_pruned
from tests.faults.servers import SingleServers
from tests.support.proxy import Proxy

RECOVERY_LIMIT_SECONDS = 30.0
SHORT, LONG, CALM = (0.2, 2.0), (2.0, 7.0), (1.0, 5.0)
GARBAGE = (b"", b"\xff\xfe", b"{}", b'["no event"]', b'[{"id": "no uuid"}]', b"[" * 1000)

AGE_TOMBSTONES = """
update tombstones set deleted_date = now() - interval '40 days', title = null, description = null, erased = true
"""
PURGE = """
import asyncio
from shared.database import connect
from shared.settings import load_settings
from worker.housekeeping import TOMBSTONE_RETENTION, purge_tombstones
from worker.settings import WorkerSettings

async def purge():
    session = await connect(load_settings(WorkerSettings).database_url, "nemesis")
    await purge_tombstones(session, TOMBSTONE_RETENTION)
    await session.close()

asyncio.run(purge())
"""

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

    def some_link(self, server: str = "") -> tuple[str, Proxy]:
        """A random link of a service, to Postgres or to the broker."""
        service = self._random.choice(self._cluster.services)
        server = server or self._random.choice(("database", "broker"))
        return f"{service.name} to {server}", service.links[server]

    def one_of(self, services: Sequence[Service]) -> Service:
        """A random service."""
        return self._random.choice(services)

    def garbage(self) -> bytes:
        """Bytes that are not a message."""
        self.unreadable += 1
        return self._random.choice(GARBAGE)

    def partition(self) -> int:
        """A random partition."""
        return self._random.randrange(self._cluster.topology.partitions)

    def _next(self) -> str:
        if not self._deck:
            self._deck = self._random.sample([*self._faults], len(self._faults))
        return self._deck.pop()

    async def _disturb(self, names: list[str]) -> None:
        """One round: the faults at once, the recovery, and a calm period."""
        self._round += 1
        await asyncio.gather(*(self._inject(name, delay) for delay, name in enumerate(names)))
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
"""Breaks something for a while; returns the target."""


def ended(how: signal.Signals, services: Callable[[Cluster[Any]], Sequence[Service]]) -> Fault:
    """Ends a process, and starts it again as a supervisor would."""

    async def end(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
        service = nemesis.one_of(services(cluster))
        async with service.lock:
            if not service.process.running:
                nemesis.complain(f"I8: {service.name} had ended by itself")
            code = await service.process.stop(how)
            if how is signal.SIGTERM and code != 0:
                nemesis.complain(f"I9: {service.name} ended with exit code {code} after SIGTERM")
            await asyncio.sleep(nemesis.seconds(SHORT))
            await service.process.start(ready=False)
        return service.name

    return end


async def postgres_restarts(_: Nemesis, cluster: Cluster[SingleServers]) -> str:
    async with cluster.servers.postgres_lock:
        await asyncio.to_thread(cluster.servers.postgres.get_wrapped_container().restart, timeout=10)
    return "postgres"


async def postgres_is_killed(nemesis: Nemesis, cluster: Cluster[SingleServers]) -> str:
    async with cluster.servers.postgres_lock:
        await asyncio.to_thread(cluster.servers.postgres.get_wrapped_container().kill)
        await asyncio.sleep(nemesis.seconds(LONG))
        await asyncio.to_thread(cluster.servers.postgres.get_wrapped_container().start)
    return "postgres"


async def postgres_is_paused(nemesis: Nemesis, cluster: Cluster[SingleServers]) -> str:
    async with cluster.servers.postgres_lock:
        await asyncio.to_thread(cluster.servers.postgres.get_wrapped_container().pause)
        await asyncio.sleep(nemesis.seconds(LONG))
        await asyncio.to_thread(cluster.servers.postgres.get_wrapped_container().unpause)
    return "postgres"


async def users_are_corrected(_: Nemesis, cluster: Cluster[SingleServers]) -> str:
    """An operator's transaction changes the row of every user."""
    async with cluster.servers.postgres_lock:
        await cluster.query(
            "with locked as (select id from users order by id for update) "
            "update users set updated_date = now() from locked where users.id = locked.id"
        )
    return "postgres"


async def broker_restarts(_: Nemesis, cluster: Cluster[SingleServers]) -> str:
    async with cluster.servers.rabbitmq_lock:
        await asyncio.to_thread(cluster.servers.rabbitmq.get_wrapped_container().restart, timeout=20)
        await broker_answers(cluster)
    return "rabbitmq"


async def broker_is_killed(nemesis: Nemesis, cluster: Cluster[SingleServers]) -> str:
    async with cluster.servers.rabbitmq_lock:
        await asyncio.to_thread(cluster.servers.rabbitmq.get_wrapped_container().kill)
        await asyncio.sleep(nemesis.seconds(SHORT))
        await asyncio.to_thread(cluster.servers.rabbitmq.get_wrapped_container().start)
        await broker_answers(cluster)
    return "rabbitmq"


async def broker_is_paused(nemesis: Nemesis, cluster: Cluster[SingleServers]) -> str:
    async with cluster.servers.rabbitmq_lock:
        await asyncio.to_thread(cluster.servers.rabbitmq.get_wrapped_container().pause)
        await asyncio.sleep(nemesis.seconds(LONG))
        await asyncio.to_thread(cluster.servers.rabbitmq.get_wrapped_container().unpause)
    return "rabbitmq"


async def broker_answers(cluster: Cluster[Any]) -> None:
    """Returns when the broker has started; its start belongs to the fault."""
    while True:
        try:
            async with asyncio.timeout(5), cluster.channel():
                return
        except (*BROKER_ERRORS, RuntimeError):  # aiormq raises StopAsyncIteration, which becomes a RuntimeError here
            await asyncio.sleep(0.3)


async def link_is_cut(nemesis: Nemesis, _: Cluster[Any]) -> str:
    name, link = nemesis.some_link()
    async with link.lock:
        await link.cut()
        await asyncio.sleep(nemesis.seconds(LONG))
        await link.start()
    return name


async def link_is_half_open(nemesis: Nemesis, _: Cluster[Any]) -> str:
    name, link = nemesis.some_link()
    async with link.lock:
        link.strand()
        await asyncio.sleep(nemesis.seconds(SHORT))
    return name


async def link_is_slow(nemesis: Nemesis, _: Cluster[Any]) -> str:
    name, link = nemesis.some_link()
    await slowed(link, nemesis.seconds((0.02, 0.5)), nemesis.seconds(LONG))
    return name


async def slowed(link: Proxy, delay_seconds: float, seconds: float) -> None:
    """Delays every piece of data on the link for a while."""
    async with link.lock:
        link.delay_seconds = delay_seconds
        await asyncio.sleep(seconds)
        link.delay_seconds = 0.0


async def commits_are_slow(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Delays every statement of the workers, while the gateways read at full speed."""
    delay, seconds = nemesis.seconds((0.02, 0.3)), nemesis.seconds(LONG)
    await asyncio.gather(*(slowed(worker.links["database"], delay, seconds) for worker in cluster.workers))
    return "workers"


async def confirm_is_lost(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Lets a gateway's messages arrive, but closes the connection before the confirms do."""
    service = nemesis.one_of(cluster.gateways)
    link = service.links["broker"]
    async with link.lock:
        link.freeze("down")
        await asyncio.sleep(nemesis.seconds(SHORT))
        await link.cut()
        link.thaw()
        await link.start()
    return service.name


async def memory_alarm(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    async with cluster.servers.rabbitmq_lock:
        await cluster.servers.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1MB")
        await asyncio.sleep(nemesis.seconds(LONG))
        await cluster.servers.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
    return "rabbitmq"


async def queue_is_full(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    async with cluster.servers.rabbitmq_lock:
        full, pattern = json.dumps({"max-length": 1}), rf"^{PREFIX}\.commands"
        await cluster.servers.rabbitmqctl("set_policy", "full", pattern, full, "--apply-to", "quorum_queues")
        await asyncio.sleep(nemesis.seconds(LONG))
        await cluster.servers.rabbitmqctl("clear_policy", "full")
        await asyncio.sleep(1)  # until it is gone everywhere
        await forget_copies(cluster)  # one that the broker has refused, which must never be published again
    return "rabbitmq"


async def messages_are_duplicated(_: Nemesis, cluster: Cluster[Any]) -> str:
    """Publishes some of the last messages with commands again."""
    published = 0
    async with cluster.servers.rabbitmq_lock, cluster.channel() as channel:
        queue = await channel.get_queue(COPIES)
        exchange = await channel.get_exchange(cluster.topology.commands_exchange)
        for _number in range(100):
            if not (message := await queue.get(fail=False, no_ack=True)):
                break
            again = Message(message.body, content_type=message.content_type, delivery_mode=DeliveryMode.PERSISTENT)
            await exchange.publish(again, message.routing_key or "")
            published += 1
    return f"{published} messages"


async def messages_are_unreadable(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    async with cluster.servers.rabbitmq_lock, cluster.channel() as channel:
        exchange = await channel.get_exchange(cluster.topology.commands_exchange)
        for _ in range(3):
            message = Message(
                nemesis.garbage(), content_type=COMMANDS_CONTENT_TYPE, delivery_mode=DeliveryMode.PERSISTENT
            )
            await exchange.publish(message, cluster.topology.routing_key(nemesis.partition()))
        await forget_copies(cluster)
    return "3 messages"


async def forget_copies(cluster: Cluster[Any]) -> None:
    """Starts the copies of messages anew."""
    async with cluster.channel() as channel:
        await (await channel.get_queue(COPIES)).purge()


async def tombstones_are_purged(_: Nemesis, cluster: Cluster[SingleServers]) -> str:
    """Makes all tombstones old, and purges them as a worker does once a minute."""
    worker = cluster.workers[0].process
    environment = worker.environment | {"INKWELL_DATABASE_URL": cluster.url_of("worker")}
    async with cluster.servers.postgres_lock:
        await cluster.query(AGE_TOMBSTONES)
        command = (sys.executable, "-c", PURGE)
        process = await asyncio.create_subprocess_exec(*command, cwd=worker.folder, env=os.environ | environment)
        assert await process.wait() == 0
    return "postgres"


FAULTS: dict[str, Fault] = {
    "gateway-kill": ended(signal.SIGKILL, lambda cluster: cluster.gateways),
    "gateway-stop": ended(signal.SIGTERM, lambda cluster: cluster.gateways),
    "worker-kill": ended(signal.SIGKILL, lambda cluster: cluster.workers),
    "worker-stop": ended(signal.SIGTERM, lambda cluster: cluster.workers),
    "postgres-restart": postgres_restarts,
    "postgres-kill": postgres_is_killed,
    "postgres-pause": postgres_is_paused,
    "users-corrected": users_are_corrected,
    "tombstones-purged": tombstones_are_purged,
    "outcomes-pruned": outcomes_are_pruned,
    "broker-restart": broker_restarts,
    "broker-kill": broker_is_killed,
    "broker-pause": broker_is_paused,
    "link-cut": link_is_cut,
    "link-half-open": link_is_half_open,
    "link-slow": link_is_slow,
    "commit-slow": commits_are_slow,
    "confirm-lost": confirm_is_lost,
    "memory-alarm": memory_alarm,
    "queue-full": queue_is_full,
    "duplicates": messages_are_duplicated,
    "unreadable": messages_are_unreadable,
}
