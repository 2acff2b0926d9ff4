"""Sockets to listen on. `::` is every address of the machine, those of IPv4 as well."""

import errno
import socket
from collections.abc import Iterable
from contextlib import ExitStack

from shared.settings import refuse

EVERY_ADDRESS = ("::", "")
FAMILIES = ("0.0.0.0", "::")  # noqa: S104 - only where an operator asks for every address
NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""The errors of a machine without IPv6, or without one of the several addresses that a name has."""


def open_sockets(host: str, port: int, setting: str) -> list[socket.socket]:
    """A socket for each address of a host, all with the same port; exits with 2 and names the setting if there is none.

    `::` is two sockets: on one for both families, clients of IPv4 would have addresses of IPv6.
    """
    try:
        return _open(FAMILIES if host in EVERY_ADDRESS else (host,), port)
    except OSError as error:
        refuse(f"{setting}: cannot listen on {host}:{port} ({error})")


def host_of_one_socket(host: str) -> str:
    """The host for a server that has one socket for all addresses."""
    if host not in EVERY_ADDRESS:
        return host
    return FAMILIES[socket.has_dualstack_ipv6()]


def _open(hosts: Iterable[str], port: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    missing: OSError | None = None
    with ExitStack() as exits:
        for family, address in (each for host in hosts for each in _addresses(host)):
            own_port = opened[0].getsockname()[1] if opened else port
            try:
                opened.append(exits.enter_context(socket.create_server((address, own_port), family=family)))
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                missing = error
        if missing and not opened:
            raise missing
        exits.pop_all()
    return opened


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [(family, str(address)) for family, _, _, _, (address, *_) in found]
