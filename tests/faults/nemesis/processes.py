"""Processes that end, or hang, and are started again as a supervisor would."""

import asyncio
import signal
from contextlib import suppress
from typing import Any

from tests.faults.cluster import Cluster, Service
from tests.faults.nemesis.engine import LONG, SHORT, Choice, Fault, Nemesis
from tests.support.harness import eventually

FROZEN = (2.0, 12.0)
"""Seconds; longer than a request may take, and sometimes than a heartbeat."""
READY_SECONDS = 30.0


def ended(how: signal.Signals, services: Choice) -> Fault:
    """Ends a process, and starts it again."""

    async def end(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
        service = nemesis.one_of(services(cluster))
        async with service.lock:
            await stop(nemesis, service, how)
            await asyncio.sleep(nemesis.seconds(SHORT))
            await service.process.start(ready=False)
        return service.name

    return end


def frozen(services: Choice) -> Fault:
    """Stops a process without ending it, as a hypervisor or a swapping host does, and lets it continue."""

    async def freeze(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
        service = nemesis.one_of(services(cluster))
        async with service.lock:
            service.process.send(signal.SIGSTOP)
            try:
                await asyncio.sleep(nemesis.seconds(FROZEN))
            finally:
                service.process.send(signal.SIGCONT)
        return service.name

    return freeze


async def all_workers_are_killed(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Kills all workers at once, so that writes have to wait in their queues."""

    async def one(worker: Service, seconds: float) -> None:
        async with worker.lock:
            await stop(nemesis, worker, signal.SIGKILL)
            await asyncio.sleep(seconds)
            await worker.process.start(ready=False)

    seconds = nemesis.seconds(LONG)
    await asyncio.gather(*(one(worker, seconds) for worker in cluster.workers))
    return "workers"


async def all_are_restarted(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Restarts every gateway, and then every worker, one after the other, as a deployment does."""
    for service in (*cluster.gateways, *cluster.workers):
        async with service.lock:
            await restart(nemesis, service)
    return "all"


async def restart(nemesis: Nemesis, service: Service) -> None:
    """Stops a service, whose lock is held, and starts it; returns when it is ready, or after some time."""
    await stop(nemesis, service, signal.SIGTERM)
    await service.process.start(ready=False)
    with suppress(TimeoutError):  # the recovery is judged later
        await eventually(service.process.is_ready, within_seconds=READY_SECONDS, every_seconds=0.2)


async def stop(nemesis: Nemesis, service: Service, how: signal.Signals) -> None:
    """Ends a process, which must still run, and must end well if it is asked to and handles signals by now."""
    if not service.process.running:
        nemesis.complain(f"I8: {service.name} had ended by itself")
    expected = {0, -signal.SIGTERM} if service.process.may_be_importing else {0}
    code = await service.process.stop(how)
    if how is signal.SIGTERM and code not in expected:
        nemesis.complain(f"I9: {service.name} ended with exit code {code} after SIGTERM")
