"""Opens the sockets to listen on. `::` means every address, IPv4 and IPv6."""

import errno
import socket
from collections.abc import Iterable
from contextlib import ExitStack

from shared.settings import exit_with_problems

EVERY_ADDRESS = ("::", "")
FAMILIES = ("0.0.0.0", "::")  # noqa: S104 - only if the settings say so
UNAVAILABLE_ERRNOS = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""The errors on a machine without IPv6, or without one of the addresses of a host name."""


def open_sockets(host: str, port: int, setting: str) -> list[socket.socket]:
    """Open a socket for each address of a host, all on the same port; exits with 2, naming the setting, if none opens.

    `::` opens two sockets: on a dual-stack one, IPv4 clients would have IPv4-mapped IPv6 addresses.
    """
    try:
        return _open(FAMILIES if host in EVERY_ADDRESS else (host,), port)
    except OSError as error:
        exit_with_problems(f"{setting}: cannot listen on {host}:{port} ({error})")


def single_socket_host(host: str) -> str:
    """Return the host for a server that can open only one socket."""
    if host not in EVERY_ADDRESS:
        return host
    return FAMILIES[socket.has_dualstack_ipv6()]


def _open(hosts: Iterable[str], port: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    missing: OSError | None = None
    with ExitStack() as exits:
        for family, address in (each for host in hosts for each in _resolve(host)):
            own_port = opened[0].getsockname()[1] if opened else port
            try:
                opened.append(exits.enter_context(socket.create_server((address, own_port), family=family)))
            except OSError as error:
                if error.errno not in UNAVAILABLE_ERRNOS:
                    raise
                missing = error
        if missing and not opened:
            raise missing
        exits.pop_all()
    return opened


def _resolve(host: str) -> list[tuple[socket.AddressFamily, str]]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [(family, str(address)) for family, _, _, _, (address, *_) in found]
