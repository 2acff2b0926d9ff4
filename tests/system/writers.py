"""Owners who each replace one note again and again, to check that their writes are applied in order."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

import httpx

from gateway.auth.access_tokens import AccessTokens
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.contracts import Scope
from tests.support.accounts import bearer
from tests.support.canaries import NOTE
from tests.support.stack import Stack

OWNERS = 40
PAUSE_SECONDS = 0.1
END_SECONDS = 60.0
"""The deadline of the last write, so that a test whose writes stay refused fails instead of hanging."""


@dataclass
class Writer:
    """An owner who replaces one note again and again, each time after the previous 202."""

    clients: list[httpx.AsyncClient]
    headers: dict[str, str]
    note_url: str = ""
    sent: int = 0
    retries: int = 0
    stopping: bool = False

    async def write(self) -> None:
        """Writes until `stopping`; everything sent is accepted when it returns."""
        created = await self._accepted("POST", "/notes/", "0", wait=30)
        self.note_url = created.headers["location"]
        while not self.stopping:
            self.sent += 1
            await self._accepted("PUT", self.note_url, str(self.sent))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _accepted(self, method: str, url: str, title: str, wait: int = 0) -> httpx.Response:
        """The 2xx of a write, which is repeated with its key until accepted."""
        prefer = f"wait={wait}" if wait else "respond-async"
        headers = self.headers | {"Idempotency-Key": uuid4().hex, "Prefer": prefer}
        body = NOTE | {"title": title}
        while True:
            client = random.choice(self.clients)  # noqa: S311 - no secret
            with suppress(httpx.TransportError):
                response = await client.request(method, url, json=body, headers=headers)
                if response.is_success:
                    return response
                assert response.status_code in (503, 504), response.text
            self.retries += 1
            await asyncio.sleep(PAUSE_SECONDS)


async def new_owners(stack: Stack) -> list[int]:
    """The ids of users without passwords, whose tokens `headers_of` makes."""
    names = "select 'owner ' || n, 'owner ' || n from generate_series(1, %d) as n"
    insert = f"insert into users (name, folded_name) {names % OWNERS} returning id"
    return [row["id"] for row in await stack.query(insert)]


def headers_of(owner: int, stack: Stack) -> dict[str, str]:
    """The headers that authenticate the owner."""
    settings = {name.removeprefix("INKWELL_").lower(): value for name, value in stack.environment.items()}
    tokens = AccessTokens(GatewaySettings.model_validate(settings), Clock())
    return bearer(tokens.issue(owner, 1, frozenset(Scope)))


@asynccontextmanager
async def writing(writers: list[Writer]) -> AsyncIterator[list[Writer]]:
    """The writers run during the block."""
    tasks = [asyncio.create_task(writer.write()) for writer in writers]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stopping = True
        async with asyncio.timeout(END_SECONDS):
            await asyncio.gather(*tasks)


async def all_go_on(stack: Stack, since: str) -> bool:
    """Whether a write of every owner has been decided since then."""
    decided = f"select count(distinct owner_id) from commands where decided_at > '{since}'"  # noqa: S608 - no user's words
    return bool(await stack.value(decided) == OWNERS)


async def are_decided(stack: Stack, writers: list[Writer]) -> bool:
    replaced = "select count(*) from commands where type = 'note.replace' and status = 'applied'"
    return bool(await stack.value(replaced) == sum(writer.sent for writer in writers))


async def check_order(stack: Stack, owners: list[int], writers: list[Writer]) -> None:
    """Checks that every accepted write was applied once, and each owner's writes in the order of their acceptance."""
    notes = {row["owner_id"]: row for row in await stack.query("select owner_id, title, version from notes")}
    # Not by decided_at: a transaction that waited for an owner's row started before the one it waited for.
    versions = "select owner_id, array_agg(note_version order by issued_at) from commands group by 1"
    applied = dict([tuple(row) for row in await stack.query(versions)])
    for owner, writer in zip(owners, writers, strict=True):
        assert (notes[owner]["title"], notes[owner]["version"]) == (str(writer.sent), 1 + writer.sent)
        assert applied[owner] == list(range(1, writer.sent + 2))
