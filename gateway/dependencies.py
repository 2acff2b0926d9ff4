"""What a request may use: every process-wide resource of the gateway, made by the app's lifespan."""

import asyncio
from dataclasses import dataclass

from fastapi import Request

from gateway.access_tokens import AccessTokens
from gateway.authentication import Authentication
from gateway.caller import Caller
from gateway.command_urls import CommandUrls
from gateway.hash_renewal import HashRenewal
from gateway.passwords import Passwords
from gateway.publisher import Publisher
from gateway.queries import Queries
from gateway.replies import Replies
from gateway.settings import GatewaySettings
from gateway.throttles import Throttles
from shared.clock import Clock


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway's resources."""

    settings: GatewaySettings
    clock: Clock
    queries: Queries
    """Reads."""
    publisher: Publisher
    """Writes on their way to the broker."""
    replies: Replies
    """Writes that wait for their outcome."""
    command_urls: CommandUrls
    authentication: Authentication
    access_tokens: AccessTokens
    passwords: Passwords
    hash_renewal: HashRenewal
    throttles: Throttles
    draining: asyncio.Event
    """Set when the gateway is about to stop: it is not ready, and no write waits for its outcome."""

    def drain(self) -> None:
        """Has every waiting write answered with what is known of it now."""
        self.draining.set()
        self.replies.look_up_now()


def gateway_of(request: Request) -> Gateway:
    """The resources of the app that serves the request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: Request) -> Caller:
    """Who calls, as the route's rule has found; only where it demands credentials."""
    caller: Caller = request.state.caller
    return caller
