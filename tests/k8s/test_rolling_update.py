"""A new release under load: pods are replaced as the Deployments say, and no request fails.

The servers stay up, so a client has nothing to retry: any refusal is a failure.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.k8s.pods import Namespace, Pod
from tests.k8s.test_policy import NOTICED_SECONDS
from tests.support import canaries
from tests.support.accounts import Person, sign_up
from tests.system.test_rolling import CLIENTS, Balancer, Load

PARTS = "worker", "gateway"
NOTES = "select title, version from notes where owner_id in ({})"
OUTCOMES = "select status, count(*) from commands where owner_id in ({}) and type like 'note.%' group by status"

pytestmark = [
    pytest.mark.needs_docker,
    pytest.mark.skipif(sys.platform != "linux", reason="pods are reached at their own addresses"),
]


class Endpoints(Balancer):
    """Sends requests in turn to the gateways that it knows; learns late that one terminates."""

    def __init__(self) -> None:
        super().__init__([])
        self._clients: dict[str, httpx.AsyncClient] = {}

    @asynccontextmanager
    async def to(self, pods: list[Pod]) -> AsyncIterator["Endpoints"]:
        """A balancer for these pods and new ones, for the block."""
        for pod in pods:
            self.add(pod)
        try:
            yield self
        finally:
            for client in self._clients.values():
                await client.aclose()

    def add(self, pod: Pod) -> None:
        """Adds a pod that is ready."""
        self._clients[pod.name] = httpx.AsyncClient(base_url=pod.url("http"), timeout=30)
        self._ready = [*self._ready, self._clients[pod.name]]

    def some_client(self) -> httpx.AsyncClient:
        """A client of the next pod."""
        return self._ready[0]

    def remove(self, pod: Pod) -> None:
        """Sends no more requests to the pod."""
        self._ready = [client for client in self._ready if client is not self._clients[pod.name]]


async def roll(namespace: Namespace, part: str, endpoints: Endpoints) -> None:
    """Replaces the pods of a Deployment: a new one is ready before an old one ends (maxSurge 1, maxUnavailable 0)."""
    for old in namespace.of(part):
        new = await namespace.start(part)
        if part == "gateway":
            endpoints.add(new)
            asyncio.get_running_loop().call_later(NOTICED_SECONDS, endpoints.remove, old)
        await old.stop()


@pytest.mark.parametrize("replicas", [1, pytest.param(3, marks=pytest.mark.long)])
async def test_release_fails_no_request_loses_no_write_and_every_process_ends_by_itself(
    namespace: Namespace, replicas: int
) -> None:
    for part in PARTS:
        while len(namespace.of(part)) < replicas:
            await namespace.start(part)
    before = [pod for part in PARTS for pod in namespace.of(part)]
    async with Endpoints().to(namespace.of("gateway")) as endpoints:
        people = [await sign_up(endpoints.some_client()) for _ in range(CLIENTS)]
        load = Load(endpoints)
        async with load.running([person.headers for person in people]):
            await load.goes_on()
            async with asyncio.TaskGroup() as rolling:
                for part in PARTS:
                    rolling.create_task(roll(namespace, part, endpoints))
            await load.goes_on()

    assert not load.refusals
    assert [pod.state["RestartCount"] for part in PARTS for pod in namespace.of(part)] == [0] * len(before)
    assert {pod.name: pod.exit_code for pod in before} == {pod.name: 0 for pod in before}
    assert not canaries.find_secrets("".join(pod.log for pod in namespace.pods if pod.part in PARTS))
    await told_once(namespace, load, people)


async def told_once(namespace: Namespace, load: Load, people: list[Person]) -> None:
    """Checks that every write has its effect and its outcome once, and that there are no others."""
    owners = {str(person.id) for person in people}
    notes = await query(namespace, "select owner_id, title, version from notes")
    theirs = sorted(tuple(note) for owner, *note in notes if owner in owners)
    assert theirs == sorted((title, str(version)) for title, version in load.versions.items())
    outcomes = await query(namespace, "select owner_id, status from commands where type like 'note.%'")
    assert [status for owner, status in outcomes if owner in owners] == ["applied"] * sum(load.versions.values())


async def query(namespace: Namespace, sql: str) -> list[list[str]]:
    """The rows in the format of `psql`."""
    [postgres] = namespace.of("postgres")
    printed = await postgres.run("psql", "--username=inkwell", "--no-align", "--tuples-only", "--command", sql)
    return [line.split("|") for line in printed.splitlines()]
