"""The gateway's process-wide resources, opened by the app's lifespan and passed to handlers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.auth.access_tokens import AccessTokens
from gateway.auth.authentication import BearerTokens, NoAuthentication
from gateway.auth.keys import KeyedHashes
from gateway.auth.passwords import Passwords
from gateway.auth.throttles import Throttles
from gateway.caller import Authentication
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


@dataclass(frozen=True, slots=True)
class Gateway:
    """The resources of a gateway."""

    settings: GatewaySettings
    clock: Clock
    """Postgres' time."""
    queries: Queries
    """Runs the reads."""
    kept_pages: KeptPages
    """Keeps pages of lists in memory."""
    followers: Followers
    """Wakes those who wait for changes."""
    submission: Submission
    """Performs the writes."""
    publisher: Publisher
    """Publishes commands to the broker."""
    replies: Replies
    """Receives the outcomes of writes."""
    command_urls: CommandUrls
    keyed_hashes: KeyedHashes
    authentication: Authentication
    access_tokens: AccessTokens
    passwords: Passwords
    hash_renewal: HashRenewal
    throttles: Throttles


@asynccontextmanager
async def open_resources(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """Open the resources of a gateway; on exit, drains the publisher before it closes them."""
    clock = Clock()
    queries = Queries(settings)
    replies = Replies(queries.primary)
    publisher = Publisher(settings, replies, clock)
    command_urls = CommandUrls(settings)
    keyed_hashes = KeyedHashes(settings)
    access_tokens = AccessTokens(settings, clock)
    passwords = Passwords()
    submission = Submission(
        settings=settings,
        clock=clock,
        publisher=publisher,
        replies=replies,
        queries=queries,
        command_urls=command_urls,
        keyed_hashes=keyed_hashes,
    )
    hash_renewal = HashRenewal(passwords, submission)
    authentication = BearerTokens(access_tokens, queries, clock) if settings.auth == "password" else NoAuthentication()
    publishing = asyncio.create_task(publisher.run())
    await queries.synchronize_clock(clock)
    followers = Followers(settings, queries)
    watches = (
        watch_loop(clock.report),
        queries.watch_primary(),
        queries.keep_clock_synchronized(clock),
        followers.run(),
    )
    watching = [asyncio.create_task(each) for each in watches]
    try:
        yield Gateway(
            settings=settings,
            clock=clock,
            queries=queries,
            kept_pages=KeptPages(settings.kept_pages_bytes),
            followers=followers,
            submission=submission,
            publisher=publisher,
            replies=replies,
            command_urls=command_urls,
            keyed_hashes=keyed_hashes,
            authentication=authentication,
            access_tokens=access_tokens,
            passwords=passwords,
            hash_renewal=hash_renewal,
            throttles=Throttles(settings),
        )
    finally:
        hash_renewal.close()
        await publisher.drain(settings.publish_timeout_seconds)
        for task in (publishing, *watching):
            task.cancel()
        await asyncio.wait({publishing, *watching}, timeout=SETUP_TIMEOUT_SECONDS)
        queries.close()
