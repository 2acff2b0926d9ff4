"""One run: clients write while the nemesis injects faults; then everything is settled, inspected and judged."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from dev.backend import ROOT
from shared.contracts import NO_OWNER
from tests.faults.checker import kinds, violations
from tests.faults.clients import POISON, Client, Owner
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.facts import Facts
from tests.faults.followers import followers_of
from tests.faults.history import History, Write
from tests.faults.nemesis import Nemesis
from tests.faults.rigs import RIGS
from tests.support.accounts import bearer
from tests.support.canaries import PASSWORD

CLIENTS_PER_OWNER = 3
PAUSE_SECONDS = 0.06
SELDOM_SECONDS = (5.0, 8.0)
FOLLOWED_OWNERS = 3
POISON_SECONDS, NEWCOMER_SECONDS = 4.0, 2.0
SETTLED_SECONDS, SETTLING = 30.0, 32
QUIET_SECONDS, TICK_SECONDS = 30.0, 0.05
MORE_FILES, MORE_SESSIONS, MORE_MEGABYTES = 12, 4, 100
"""Growth below this is no leak: connections come and go."""


@dataclass(frozen=True)
class Verdict:
    """The results of a run."""

    seed: int
    seconds: float
    violations: list[str]
    commands: int
    faults: Counter[str]
    answers: Counter[str]
    recoveries: Mapping[str, Sequence[float]]
    """The seconds of each recovery, by fault."""
    lag_seconds: float


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
    chosen = {name: RIGS[rig].faults[name] for name in faults or RIGS[rig].faults}
    loop = asyncio.get_running_loop()
    async with running_cluster(RIGS[rig].servers(), tree, logs) as cluster:
        history, began = History(), loop.time()
        nemesis = Nemesis(cluster, history, seed, chosen)
        before = await cluster.leftovers()
        clients = [
            Client(owner, cluster.owners, cluster.clients, history, seed * 1000 + number)
            for number, owner in enumerate(cluster.owners * clients_per_owner)
        ]
        quiet = [Client(owner, (), cluster.clients, history, owner.id) for owner in cluster.quiet_owners]
        followers = followers_of(
            cluster.owners[:FOLLOWED_OWNERS], cluster.quiet_owners, cluster.clients, history.follows, seed
        )
        async with asyncio.TaskGroup() as tasks:
            stopping = asyncio.Event()
            for client in clients[1:]:
                tasks.create_task(client.run(stopping, PAUSE_SECONDS))
            for client in quiet:
                tasks.create_task(write_seldom(client, stopping))
            for follower in followers:
                tasks.create_task(follower.run(stopping))
            tasks.create_task(poison(clients[0], stopping))
            tasks.create_task(newcomers(cluster, history, clients, stopping))
            ticking = tasks.create_task(keep_time(history))
            await (watch(cluster) if watch else nemesis.run_each(times) if times else nemesis.run(seconds))
            seconds = loop.time() - began if times or watch else seconds
            stopping.set()
            ticking.cancel()
        await settle([*clients, *quiet], history)
        await asyncio.gather(*(follower.catch_up() for follower in followers))
        history.complaints += await left_behind(cluster, before, nemesis.unreadable)
        facts = await Facts.of(cluster)
        return Verdict(
            seed,
            seconds,
            violations(history, facts),
            len({command["id"] for command in facts.commands}),  # several writes at once are one command
            Counter(each.name for each in history.disturbances),
            kinds(history.answers()),
            history.recoveries_by_fault(),
            history.lag_seconds,
        )


async def poison(client: Client, stopping: asyncio.Event) -> None:
    """Sometimes writes what Postgres refuses, each after the previous one is decided, since two count as a bug."""
    number = 0
    while not stopping.is_set():
        number += 1
        write = await client.write("create", marker=f"{POISON} {number}")
        while not await client.ask_again(write) and not stopping.is_set():
            await asyncio.sleep(0.5)
        await asyncio.sleep(POISON_SECONDS)


async def write_seldom(client: Client, stopping: asyncio.Event) -> None:
    """Writes so seldom that no other write wakes those who wait for one."""
    while not stopping.is_set():
        await client.write("create")
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(*SELDOM_SECONDS)):  # noqa: S311 - no secret
                await stopping.wait()


async def newcomers(cluster: Cluster[Any], history: History, clients: list[Client], stopping: asyncio.Event) -> None:
    """Users register, create a token and change their name, one after the other."""
    unregistered = Client(Owner(NO_OWNER, {}), (), cluster.clients, history, NO_OWNER)
    clients.append(unregistered)
    number = 0
    while not stopping.is_set():
        number += 1
        registered = await unregistered.write("register", marker=f"newcomer-{number}")
        if person := await signed_in(cluster, history, registered):
            client = Client(person, (), cluster.clients, history, number)
            clients.append(client)
            await client.write("token", marker=f"newcomer-{number}-token")
            await client.write("rename", marker=f"newcomer-{number}-renamed")
        await asyncio.sleep(NEWCOMER_SECONDS)


async def signed_in(cluster: Cluster[Any], history: History, registered: Write) -> Owner | None:
    """The new user, if the registration succeeded and the sign-in is answered; a registered user can sign in."""
    if registered.status != "applied":
        return None
    client, login = cluster.clients[0], {"username": registered.marker, "password": PASSWORD}
    try:
        async with client.post("/auth/token", data=login) as answer:
            text = await answer.text()
            if 400 <= answer.status < 500:
                complaint = f"I5: {registered.marker} is registered, and signing in was answered {text}"
                history.complaints.append(complaint)
            headers = bearer(json.loads(text).get("access_token", ""))
        async with client.get("/users/me", headers=headers) as me:
            return Owner((await me.json())["id"], headers) if me.ok else None
    except (aiohttp.ClientError, OSError):
        return None


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
    """Records how long the clients are stalled, so that it is not counted as the gateways' time."""
    now = asyncio.get_running_loop().time
    while True:
        started = now()
        await asyncio.sleep(TICK_SECONDS)
        history.lag_seconds = max(history.lag_seconds, now() - started - TICK_SECONDS)


def leaks(before: dict[str, int], after: dict[str, int], unreadable: int) -> list[str]:
    """I9: what has not returned to its initial level; and messages that should have become dead letters."""
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
        found.append(f"I1: {unreadable} messages were unreadable, and {after['dead letters']} are dead letters")
    return found
