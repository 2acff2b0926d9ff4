"""How clients reach the gateways: each request is sent once, to either of them, and recorded with its answer."""

import asyncio
import json
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import aiohttp

from tests.faults.history import Answer, History

PUBLISH_SECONDS, READ_SECONDS, WAIT_SECONDS = 3.0, 3.0, 1.0
"""The settings of the gateways."""
PATIENCE_SECONDS = 10.0
"""How much longer than promised a client waits, to measure how late an answer is."""
KEPT_SECONDS = 2.0
"""Shorter than uvicorn's limit of 5 s, or a request could be sent on a closing connection."""
TEXTS_KNOWN = 30
Gateways = Sequence[aiohttp.ClientSession]


@dataclass
class Owner:
    """A user and the notes that their clients know."""

    id: int
    headers: dict[str, str]
    notes: dict[int, int] = field(default_factory=dict)
    """The newest version of each note that an answer contained."""
    trash: dict[int, int] = field(default_factory=dict)
    """The last deleted notes, with their versions as far as they are known."""
    texts: deque[str] = field(default_factory=lambda: deque(maxlen=TEXTS_KNOWN))
    """Texts that were written lately."""
    urls: list[str] = field(default_factory=list)
    """The URLs of commands."""


class Connection:
    """An owner's way to the gateways."""

    def __init__(self, owner: Owner, gateways: Gateways, history: History, seed: int) -> None:
        self.owner = owner
        self.history = history
        self.random = Random(seed)  # noqa: S311 - no secret
        self._gateways = gateways

    async def ask(self, method: str, path: str, limit_seconds: float, **request: Any) -> Answer:
        """Sends a request to either gateway; `is_page` leaves the body of the answer as it is."""
        gateway, headers = self.random.randrange(len(self._gateways)), self.owner.headers | request.pop("headers", {})
        return await ask(self._gateways, gateway, method, path, limit_seconds, headers=headers, **request)

    def new_id(self) -> str:
        """A random UUID."""
        return str(UUID(int=self.random.getrandbits(128), version=4))


async def ask(
    gateways: Gateways,
    gateway: int,
    method: str,
    path: str,
    limit_seconds: float,
    *,
    is_page: bool = False,
    **request: Any,
) -> Answer:
    """The answer of a gateway, or why there is none."""
    loop = asyncio.get_running_loop()
    answer = Answer(gateway, loop.time(), limit_seconds)
    timeout = aiohttp.ClientTimeout(limit_seconds + PATIENCE_SECONDS)
    try:
        async with gateways[gateway].request(method, path, timeout=timeout, **request) as response:
            await fill(answer, response, is_page=is_page)
    except (aiohttp.ClientError, OSError) as error:
        answer.error = type(error).__name__
    answer.answered = loop.time()
    return answer


async def fill(answer: Answer, response: aiohttp.ClientResponse, *, is_page: bool = False) -> None:
    """Records what the checker needs of a response; a page of notes is large, and not parsed."""
    content = await response.read()
    answer.etag, answer.location = response.headers.get("etag"), response.headers.get("location")
    if is_page and response.ok:
        answer.body, answer.link = content, response.headers.get("link")
        answer.total = response.headers.get("x-total-count")
    elif content:
        answer.body = json.loads(content)
        answer.code = answer.body.get("code") if isinstance(answer.body, dict) and not response.ok else None
    answer.status = response.status


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Waits so long, or until stopped."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()


async def end_soon(tasks: Collection[asyncio.Task[None]], seconds: float) -> int:
    """Waits so long for the tasks to end, and then cancels them; returns the number of those cancelled."""
    _, late = await asyncio.wait(tasks, timeout=seconds) if tasks else ((), ())
    for task in late:
        task.cancel()
    return len(late)


def session(base_url: str) -> aiohttp.ClientSession:
    """A session that sends a request once: aiohttp itself would silently repeat some when a connection ends."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS)
    opened = aiohttp.ClientSession(base_url, connector=connector)
    opened._retry_connection = False
    return opened
