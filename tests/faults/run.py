"""One run: clients write while the nemesis injects faults; then everything is settled, inspected and judged."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import structlog

from dev.backend import ROOT
from tests.faults.accounts import people
from tests.faults.availability import availabilities
from tests.faults.checker import kinds, violations
from tests.faults.clients import Client
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.connection import pause
from tests.faults.dead_letters import letters
from tests.faults.evidence import evidence
from tests.faults.facts import Facts
from tests.faults.followers import followers_of
from tests.faults.history import History, Write
from tests.faults.mixed_versions import forget_unknown_requests
from tests.faults.nemesis import Nemesis, can_be_injected
from tests.faults.nemesis.operations import deleted_users_are_removed
from tests.faults.rigs import RIGS
from tests.faults.runs import SHOWN, Verdict, commit, source

CLIENTS_PER_OWNER = 3
PAUSE_SECONDS = 0.06
SELDOM_SECONDS = (5.0, 8.0)
FOLLOWED_OWNERS = 3
SETTLED_SECONDS, SETTLING = 30.0, 32
QUIET_SECONDS, TICK_SECONDS = 30.0, 0.05
MORE_FILES, MORE_SESSIONS, MORE_MEGABYTES = 12, 4, 100
"""Growth below this is no leak: connections come and go."""

log = structlog.get_logger()


async def run(
    seconds: float,
    seed: int,
    faults: Sequence[str] = (),
    *,
    rig: str = "single",
    times: int | None = None,
    clients_per_owner: int = CLIENTS_PER_OWNER,
    tree: Path = ROOT,
    logs: Path | None = None,
    watch: Callable[[Cluster[Any]], Awaitable[None]] | None = None,
) -> Verdict:
    """Runs the services of a source tree through these faults or all of a rig's; their logs go to a folder.

    A run ends after this many seconds, or once each fault was injected this many times. With `watch`, it ends when that
    returns, and injects no fault.
    """
    chosen = {name: fault for name, fault in RIGS[rig].faults.items() if name in faults or not faults}
    chosen = {name: fault for name, fault in chosen.items() if can_be_injected(name)}
    loop = asyncio.get_running_loop()
    async with running_cluster(RIGS[rig].servers(), tree, logs) as cluster:
        history, began = History(), loop.time()
        nemesis = Nemesis(cluster, history, seed, chosen)
        before = await cluster.leftovers()
        seeds = count(seed * 1000 + 1)  # others have the run's; equal ones would write equal texts
        clients = [
            Client(owner, cluster.owners, cluster.clients, history, next(seeds))
            for owner in cluster.owners * clients_per_owner
        ]
        quiet = [Client(owner, (), cluster.clients, history, next(seeds)) for owner in cluster.quiet_owners]
        followers = followers_of(
            cluster.owners[:FOLLOWED_OWNERS], cluster.quiet_owners, cluster.clients, history.follows, seed
        )
        async with asyncio.TaskGroup() as tasks:
            stopping = asyncio.Event()
            for client in clients:
                tasks.create_task(client.run(stopping, PAUSE_SECONDS))
            for client in quiet:
                tasks.create_task(write_seldom(client, stopping))
            for follower in followers:
                tasks.create_task(follower.run(stopping))
            tasks.create_task(letters(cluster.owners[0], cluster, history, seed, stopping))
            tasks.create_task(people(cluster.clients, history, seed, stopping))
            ticking = tasks.create_task(keep_time(history))
            await (watch(cluster) if watch else nemesis.run_each(times) if times else nemesis.run(seconds))
            seconds = loop.time() - began if times or watch else seconds
            stopping.set()
            ticking.cancel()
        await settle([*clients, *quiet], history)
        await asyncio.gather(*(follower.catch_up() for follower in followers))
        history.complaints += await left_behind(cluster, before, nemesis.unreadable)
        await deleted_users_are_removed(nemesis, cluster)
        facts = await Facts.of(cluster)
        forget_unknown_requests(history)
        found = violations(history, facts)
        for each in found[:SHOWN]:
            log.warning(evidence(each, facts))
        return Verdict(
            commit(),
            source(tree),
            rig,
            seed,
            round(seconds, 1),
            len(facts.by_id),
            Counter(each.name for each in history.disturbances),
            kinds(history.answers()),
            history.recoveries_by_fault(),
            availabilities(history),
            history.lag_seconds,
            found,
        )


async def write_seldom(client: Client, stopping: asyncio.Event) -> None:
    """Writes so seldom that no other write wakes those who wait for one, and that gateways can keep a list."""
    while not stopping.is_set():
        await client.write("create")
        await client.look()
        await pause(stopping, random.uniform(*SELDOM_SECONDS))  # noqa: S311 - no secret


async def settle(clients: list[Client], history: History) -> None:
    """Resolves all writes: every accepted one is decided soon, now that everything is served again."""
    client_of = {client.owner.id: client for client in clients}
    room = asyncio.Semaphore(SETTLING)
    deadline = asyncio.get_running_loop().time() + SETTLED_SECONDS

    async def one(write: Write) -> None:
        async with room:
            await client_of[write.owner].settle(write, deadline)

    await asyncio.gather(*(one(write) for write in history.writes if write.status == "unknown"))


async def left_behind(cluster: Cluster[Any], before: dict[str, int], unreadable: int) -> list[str]:
    """What has not returned to its initial level within a time."""
    deadline = asyncio.get_running_loop().time() + QUIET_SECONDS
    while found := leaks(before, await cluster.leftovers(), unreadable):
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(1)
    return found


async def keep_time(history: History) -> None:
    """Records when the clients are stalled, so that it is not counted as the gateways' time."""
    now = asyncio.get_running_loop().time
    while True:
        due = now() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        history.stalls.add(due, now())


def leaks(before: dict[str, int], after: dict[str, int], unreadable: int) -> list[str]:
    """I9: what has not returned to its initial level; and unreadable messages that were lost."""
    room = {name: MORE_MEGABYTES if name.endswith("MB") else MORE_FILES for name in before} | {
        "sessions": MORE_SESSIONS
    }
    room |= {"idle transactions": 0, "commands waiting": 0, "dead letters": 10**9}
    found = [
        f"I9: {name}: {after[name]}, and {before[name]} in the beginning"
        for name in before
        if after[name] > before[name] + room[name]
    ]
    if after["dead letters"] < unreadable:
        found.append(f"I1: {unreadable} messages were unreadable, and {after['dead letters']} are in their queue")
    return found
