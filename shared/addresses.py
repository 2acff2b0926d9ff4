"""Connects to the first address that answers, for servers with several hosts and hosts with several addresses.

Each address has its own deadline, so that one that hangs does not use up the time of the others.
"""

import asyncio
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TypeVar
from urllib.parse import quote, unquote

HIGHEST_PORT = 65535
SHORTEST_DEADLINE_SECONDS = 1.0
"""The minimum deadline of an address, however many there are."""
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^]]+)]|(?P<host>[^]:[\s]*))(?::(?P<port>\d*))?")
_INVALID_ENCODING = re.compile("%(?![0-9A-Fa-f]{2})|%00")
_silent: set[tuple[str, int]] = set()
"""Addresses that did not answer the last time, and are tried last; shared by all connections of the process."""
T = TypeVar("T")
Host = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a host."""

    host: str
    """The name in the URL, which certificates are checked against."""
    ip: str
    """An IP address, or the directory of a Unix socket."""
    port: int


async def connect_to_any(
    hosts: Sequence[Host],
    connect: Callable[[Address, float], Awaitable[T]],
    errors: tuple[type[BaseException], ...],
    seconds: float,
    seconds_each: float | None = None,
) -> T:
    """Return what `connect` returns for the first address that works.

    `connect` is called with an address and its timeout in seconds: `seconds_each`, or a share of `seconds`. Any
    exception other than `errors` propagates; if every address fails, raises the most specific of their errors.
    """
    now = asyncio.get_running_loop().time
    ends = now() + seconds
    addresses = await resolve(hosts, seconds_each or seconds / 2)
    failures: list[BaseException] = []
    for number, address in enumerate(addresses):
        # Later addresses share the time that earlier ones have left, for instance by refusing at once.
        share = max(SHORTEST_DEADLINE_SECONDS, (ends - now()) / (len(addresses) - number))
        try:
            return await _try(address, connect, seconds_each or share)
        except errors as error:
            failures.append(error)
    # A protocol error is more specific than a refused connection or a timeout.
    raise next((each for each in failures if not isinstance(each, OSError)), failures[-1])


async def _try(address: Address, connect: Callable[[Address, float], Awaitable[T]], seconds: float) -> T:
    key = address.ip, address.port
    try:
        async with asyncio.timeout(seconds):
            connected = await connect(address, seconds)
    except (TimeoutError, asyncio.CancelledError):  # cancelled by a shorter deadline of the caller
        _silent.add(key)
        raise
    except BaseException:
        _silent.discard(key)
        raise
    _silent.discard(key)
    return connected


async def resolve(hosts: Sequence[Host], seconds: float) -> list[Address]:
    """Return the addresses of the hosts, each host's in random order, and the silent ones last.

    Omits hosts whose names cannot be resolved; raises OSError if none can be.
    """
    found = await asyncio.gather(*(_resolve(*host, seconds) for host in hosts), return_exceptions=True)
    addresses = [address for each in found if not isinstance(each, BaseException) for address in each]
    for each in found:
        if isinstance(each, BaseException) and (not addresses or not isinstance(each, OSError)):
            raise each
    return sorted(addresses, key=lambda each: (each.ip, each.port) in _silent)


async def _resolve(host: str, port: int, seconds: float) -> list[Address]:
    if host.startswith("/"):
        return [Address(host, host, port)]
    async with asyncio.timeout(seconds):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    return [Address(host, ip, port) for ip in random.sample(addresses, len(addresses))]


def split_url(text: str, *schemes: str) -> tuple[str, str, str, str]:
    """Return the scheme, the authority, the path without its slash and the query; raises ValueError."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in schemes:
        raise ValueError(f"must begin with {' or '.join(f'{each}://' for each in schemes)}")
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    if "@" not in authority and "@" in path + query:
        raise ValueError("has a user or a password with a / or a ? that is not percent-encoded")
    return scheme, authority, path, query


def split_authority(authority: str) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    """Return the user and the password, still percent-encoded, and the hosts and their ports; raises ValueError."""
    userinfo, _, addresses = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    hosts, ports = zip(*map(_parse_address, addresses.split(",")), strict=True)
    return user, password, hosts, ports


def insert_password(text: str, password: str) -> str:
    """Return the URL with this password for its user; raises ValueError if it has no user, or a password already."""
    scheme, separator, rest = text.partition("://")
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    user, _, _ = authority.rpartition("@")
    if not user or ":" in user:
        raise ValueError("must have a user and no password")
    return f"{scheme}{separator}{user}:{quote(password, safe='')}{rest[len(user) :]}"


def _parse_address(text: str) -> tuple[str, str]:
    """Return a host and its port, either of which may be empty; raises ValueError for anything else."""
    if not (found := _ADDRESS.fullmatch(text)):
        raise ValueError("has an invalid host; special characters in a user or a password must be percent-encoded")
    return found["ipv6"] or found["host"], found["port"] or ""


def pair_hosts(hosts: Sequence[str], ports: Sequence[str], default_port: int) -> Iterator[Host]:
    """Yield each host with its port, or with the only port; raises ValueError for a missing host or an invalid port."""
    if not all(hosts):
        raise ValueError("lacks a host")
    if len(ports) not in (1, len(hosts)):
        raise ValueError("has more or fewer ports than hosts")
    for host, port in zip(hosts, ports if len(ports) > 1 else repeat(ports[0]), strict=False):
        if port and not (port.isdecimal() and 0 < int(port) <= HIGHEST_PORT):
            raise ValueError(f"has a port that is not between 1 and {HIGHEST_PORT}")
        yield host, int(port or default_port)


def decode(text: str) -> str:
    """Decode percent-encoded text; raises ValueError if it is invalid."""
    if _INVALID_ENCODING.search(text):
        raise ValueError("has a % that does not begin a percent-encoded character; encode a literal % as %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("has percent-encoded characters that are not UTF-8") from None
