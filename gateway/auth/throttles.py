"""Rate limits for password guesses and for asking for names, counted by each process on its own.

With N gateways a client has N times the attempts; a strict limit belongs in the proxy in front of them.
"""

import asyncio
import math
from ipaddress import ip_address, ip_network

import limits

from gateway.http.requests import Request
from gateway.problems import TOO_MANY_REQUESTS, ProblemError
from gateway.settings import GatewaySettings

IPV6_NETWORK_BITS = 64
"""Providers assign whole networks of this size to a single customer."""
SWEEP_SECONDS = 10.0


class Windows:
    """Counts attempts in fixed windows of monotonic time, which setting the clock neither ends nor extends."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[int, float]] = {}
        """The number of attempts, and the end of the window."""
        self._swept_at = 0.0

    def hit(self, key: str, length_seconds: float) -> tuple[int, float]:
        """Count an attempt; returns the number in the window, and the seconds until it ends."""
        now = asyncio.get_running_loop().time()
        self._sweep(now)
        count, ends_at = self._windows.get(key, (0, 0.0))
        if ends_at <= now:
            count = 0
            ends_at = now + length_seconds
        self._windows[key] = count + 1, ends_at
        return count + 1, ends_at - now

    def clear(self, key: str) -> None:
        """Forget the key's attempts."""
        self._windows.pop(key, None)

    def _sweep(self, now: float) -> None:
        """Drop the windows that have ended, every SWEEP_SECONDS."""
        if now - self._swept_at > SWEEP_SECONDS:
            self._swept_at = now
            self._windows = {key: window for key, window in self._windows.items() if window[1] > now}


class Throttles:
    """Counts attempts: names that are asked for by address, passwords by address and by account."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._windows = Windows()
        self._login = limits.parse(settings.login_limit)
        self._login_address = limits.parse(settings.login_address_limit)
        self._registration = limits.parse(settings.registration_limit)
        self._proxies = settings.trusted_proxies

    def count_guess(self, request: Request, account: str | int) -> None:
        """Count an attempt at the password of a name or an owner; raises ProblemError 429."""
        address = self._find_address(request)
        if address:  # first: an address over its limit adds no windows for the names that it tries
            self._hit(self._login_address, "passwords", address)
        self._hit(self._login, *_build_key(account), address or "")

    def forget_guesses(self, request: Request, account: str | int) -> None:
        """Reset the account's attempts after a correct password."""
        self._windows.clear(self._login.key_for(*_build_key(account), self._find_address(request) or ""))

    def count_name(self, request: Request) -> None:
        """Count a registration or a new name: the response tells whether it is taken. Raises ProblemError 429."""
        if address := self._find_address(request):
            self._hit(self._registration, "registration", address)

    def _hit(self, limit: limits.RateLimitItem, *key: str) -> None:
        count, seconds_left = self._windows.hit(limit.key_for(*key), limit.get_expiry())
        if count > limit.amount:
            seconds = max(1, math.ceil(seconds_left))
            detail = f"Too many attempts; try again in {seconds} s"
            raise ProblemError(TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(seconds)})

    def _find_address(self, request: Request) -> str | None:
        """Return the client's address or IPv6 network; None if a trusted proxy does not forward it."""
        try:
            address = ip_address(request.client.host if request.client else "")
        except ValueError:
            return None
        if any(address in proxy for proxy in self._proxies):
            return None
        address = getattr(address, "ipv4_mapped", None) or address
        return str(ip_network((address, IPV6_NETWORK_BITS), strict=False) if address.version == 6 else address)


def _build_key(account: str | int) -> tuple[str, str]:
    """Return the key of an account, in which an owner's id differs from a name that consists of digits."""
    return ("name" if isinstance(account, str) else "owner", str(account))
