"""Clients that follow an owner's changes, by pages or by a stream, through all faults, and keep a copy."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import aiohttp

from tests.faults.connection import Gateways, Owner
from tests.faults.history import Follow, Seen

PATH = "/notes/changes"
WAIT_SECONDS = 2
ABSENT_SECONDS = (2.0, 8.0)
"""How long one who comes now and then stays away; meanwhile deletions may be purged."""
SILENT_SECONDS = 20.0
"""A stream without a heartbeat for longer than this is dead."""
RETRY_SECONDS = (0.1, 0.5)
ERRORS = (aiohttp.ClientError, OSError, TimeoutError)
HOW = ("stream", "wait", "absent")


class Follower:
    """Follows an owner's changes at one gateway after the other."""

    def __init__(self, owner: Owner, gateways: Gateways, follow: Follow, seed: int) -> None:
        self._owner = owner
        self._gateways = gateways
        self._follow = follow
        self._random = Random(seed)  # noqa: S311 - no secret
        self._cursor: str | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Follows until stopped."""
        while not stopping.is_set():
            try:
                await (self._stream(stopping) if self._follow.how == "stream" else self._read_pages())
            except ERRORS:
                await asyncio.sleep(self._random.uniform(*RETRY_SECONDS))

    async def catch_up(self) -> None:
        """Reads pages until there are no more, whatever fails."""
        more = True
        while more:
            try:
                more = await self._read_page({})
            except ERRORS:
                await asyncio.sleep(self._random.uniform(*RETRY_SECONDS))

    async def _read_pages(self) -> None:
        wait = {"Prefer": f"wait={WAIT_SECONDS}"} if self._follow.how == "wait" else {}
        if not await self._read_page(wait) and self._follow.how == "absent":
            await asyncio.sleep(self._random.uniform(*ABSENT_SECONDS))

    async def _read_page(self, headers: dict[str, str]) -> bool:
        since = {"since": self._cursor} if self._cursor else {}
        timeout = aiohttp.ClientTimeout(SILENT_SECONDS)
        all_headers = self._owner.headers | headers
        async with self._gateway().get(PATH, params=since, headers=all_headers, timeout=timeout) as answer:
            page = await self._body_of(answer)
        if page:
            for change in page["changes"]:
                self._see(change)
            self._cursor = page["cursor"]
        return not page or page["more"]

    async def _stream(self, stopping: asyncio.Event) -> None:
        resume = {"Last-Event-ID": self._cursor} if self._cursor else {}
        headers = self._owner.headers | resume | {"Accept": "text/event-stream"}
        timeout = aiohttp.ClientTimeout(None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
        async with self._gateway().get(PATH, headers=headers, timeout=timeout) as answer:
            if answer.status != 200:
                await self._body_of(answer)
                return
            began = asyncio.get_running_loop().time()
            reading = asyncio.create_task(self._read_events(answer))
            stopped = asyncio.create_task(stopping.wait())
            try:
                await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._follow.connected.append((began, asyncio.get_running_loop().time()))
                for task in (reading, stopped):
                    task.cancel()
                await asyncio.wait((reading, stopped))
            if not reading.cancelled() and (error := reading.exception()):
                raise error
        await asyncio.sleep(self._random.uniform(*RETRY_SECONDS))

    async def _read_events(self, answer: aiohttp.ClientResponse) -> None:
        async for event in events(answer.content):
            if event.get("event") == "change":
                self._see(json.loads(event["data"]))
            self._cursor = event.get("id", self._cursor)

    async def _body_of(self, answer: aiohttp.ClientResponse) -> Any:
        """The page, or None if there was none; if changes are gone, begins anew."""
        if answer.status == 200:
            return await answer.json()
        if answer.status == 410:
            self._cursor = None
            self._follow.begin_anew(asyncio.get_running_loop().time())
        elif answer.status not in (422, 503):  # 422: a gateway of the version before takes `changes` for a note's id
            self._follow.refusals.append(f"{answer.status} {await answer.text()}")
        await asyncio.sleep(self._random.uniform(*RETRY_SECONDS))
        return None

    def _see(self, change: dict[str, Any]) -> None:
        note = change.get("note") or {}
        self._follow.see(
            Seen(
                change["id"],
                change["revision"],
                note.get("version"),
                note.get("description"),
                asyncio.get_running_loop().time(),
            )
        )

    def _gateway(self) -> aiohttp.ClientSession:
        return self._random.choice(self._gateways)


async def events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, str]]:
    """The complete blocks of an event stream."""
    block = dict[str, str]()
    async for line in content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            block[name] = value
        elif line == b"\n":
            yield block
            block = {}


def followers_of(
    owners: Sequence[Owner], quiet: Sequence[Owner], gateways: Gateways, follows: list[Follow], seed: int
) -> list[Follower]:
    """Followers of each kind of a few owners, and a stream for each owner who seldom writes."""
    followed = [(owner, how) for owner in owners for how in HOW] + [(owner, "stream") for owner in quiet]
    follows += [Follow(owner.id, how) for owner, how in followed]
    return [
        Follower(owner, gateways, follow, seed + number)
        for number, ((owner, _), follow) in enumerate(zip(followed, follows, strict=True))
    ]
