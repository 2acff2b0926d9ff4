"""The gateway's process-wide resources, opened by the app's lifespan and passed to handlers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.auth.access_tokens import AccessTokens
from gateway.auth.authentication import BearerTokens, NoAuthentication
from gateway.auth.keys import KeyedHashes
from gateway.auth.passwords import Passwords
from gateway.auth.throttles import Throttles
from gateway.caller import Authentication
from gateway.reads.exports import Exports
from gateway.reads.fair_limiter import FairLimiter
from gateway.reads.followers import Followers
from gateway.reads.kept_pages import KeptPages
from gateway.reads.queries import Queries
from gateway.settings import GatewaySettings
from gateway.writes.command_urls import CommandUrls
from gateway.writes.hash_renewal import HashRenewal
from gateway.writes.publisher import Publisher
from gateway.writes.replies import Replies
from gateway.writes.submission import Submission
from shared.broker import SETUP_TIMEOUT_SECONDS
from shared.clock import Clock
from shared.metrics import watch_loop
from shared.tasks import start_in_background

IMPORTS_LIMIT = 8
"""Imports at once in a process."""
IMPORTS_SHARE = 2
"""Imports at once of one user: a second one may begin before the gateway notices that the first has lost its client."""


class Gateway:
    """The resources of a gateway, in the order of their dependencies; `open_resources` runs what runs."""

    def __init__(self, settings: GatewaySettings) -> None:
        has_users = settings.auth == "password"
        self.settings = settings
        self.clock = Clock()
        """Postgres' time."""
        self.queries = Queries(settings)
        """Runs the reads."""
        self.kept_pages = KeptPages(settings.kept_pages_bytes)
        """Keeps pages of lists in memory."""
        self.followers = Followers(settings, self.queries)
        """Wakes those who wait for changes."""
        self.exports = Exports(settings)
        """Reads all notes of an owner."""
        self.replies = Replies(self.queries.primary)
        """Receives the outcomes of writes."""
        self.publisher = Publisher(settings, self.replies, self.clock)
        """Publishes commands to the broker."""
        self.command_urls = CommandUrls(settings)
        self.keyed_hashes = KeyedHashes(settings)
        self.submission = Submission(
            settings=settings,
            clock=self.clock,
            publisher=self.publisher,
            replies=self.replies,
            queries=self.queries,
            command_urls=self.command_urls,
            keyed_hashes=self.keyed_hashes,
        )
        """Performs the writes."""
        self.import_permits = FairLimiter(IMPORTS_LIMIT, IMPORTS_SHARE if has_users else IMPORTS_LIMIT)
        """Limits the imports at once."""
        self.passwords = Passwords()
        self.hash_renewal = HashRenewal(self.passwords, self.submission)
        self.throttles = Throttles(settings)
        self.access_tokens = AccessTokens(settings, self.clock)
        self.authentication: Authentication = (
            BearerTokens(self.access_tokens, self.queries, self.clock) if has_users else NoAuthentication()
        )


@asynccontextmanager
async def open_resources(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """Open the resources of a gateway; on exit, drains the publisher before it closes them."""
    gateway = Gateway(settings)
    publishing = start_in_background(publisher=gateway.publisher.run())
    await gateway.queries.synchronize_clock(gateway.clock)
    watching = start_in_background(
        metrics=watch_loop(gateway.clock.report),
        primary=gateway.queries.watch_primary(),
        clock=gateway.queries.keep_clock_synchronized(gateway.clock),
        followers=gateway.followers.run(),
    )
    try:
        yield gateway
    finally:
        gateway.hash_renewal.close()
        await gateway.publisher.drain(settings.publish_timeout_seconds)
        for task in (*publishing, *watching):
            task.cancel()
        await asyncio.wait({*publishing, *watching}, timeout=SETUP_TIMEOUT_SECONDS)
        gateway.queries.close()
