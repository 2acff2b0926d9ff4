"""Limits how often a client may try what is expensive or guesses secrets. Counted in this process alone.

Behind N gateways a client has N times the tries; a strict limit belongs in the proxy in front of them.
"""

import math
import time
from ipaddress import ip_address, ip_network

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from gateway.http.requests import Request
from gateway.problems import TOO_MANY_REQUESTS, ProblemError
from gateway.settings import GatewaySettings

IPV6_NETWORK_BITS = 64
"""A client with one address of such a network has them all."""


class Throttles:
    """Counts tries by address; the account is part of the count where a password is guessed."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._login = limits.parse(settings.login_limit)
        self._login_address = limits.parse(settings.login_address_limit)
        self._registration = limits.parse(settings.registration_limit)
        self._proxies = settings.trusted_proxies

    async def count_guess(self, request: Request, account: str | int) -> None:
        """Count a try at the password of a name or an owner; raises ProblemError 429."""
        address = self._address(request)
        await self._hit(self._login, *_build_key(account), address or "")
        if address:
            await self._hit(self._login_address, "passwords", address)

    async def forget_guesses(self, request: Request, account: str | int) -> None:
        """Forget the account's tries: the last one was right."""
        await self._limiter.clear(self._login, *_build_key(account), self._address(request) or "")

    async def count_registration(self, request: Request) -> None:
        """Count a registration; raises ProblemError 429."""
        if address := self._address(request):
            await self._hit(self._registration, "registration", address)

    async def _hit(self, limit: limits.RateLimitItem, *key: str) -> None:
        if not await self._limiter.hit(limit, *key):
            resets_at = (await self._limiter.get_window_stats(limit, *key)).reset_time
            seconds = max(1, math.ceil(resets_at - time.time()))
            detail = f"Too many tries; the next one counts in {seconds} s"
            raise ProblemError(TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(seconds)})

    def _address(self, request: Request) -> str | None:
        """The client's address or IPv6 network; None if it is unknown: a proxy that forwards no address serves many."""
        try:
            address = ip_address(request.client.host if request.client else "")
        except ValueError:
            return None
        if any(address in proxy for proxy in self._proxies):
            return None
        address = getattr(address, "ipv4_mapped", None) or address
        return str(ip_network((address, IPV6_NETWORK_BITS), strict=False) if address.version == 6 else address)


def _build_key(account: str | int) -> tuple[str, str]:
    """The key of an account; an owner's id must not be taken for a user with that name."""
    return ("name" if isinstance(account, str) else "owner", str(account))
