"""Which pods have connected to which, from the socket tables of the pods' own networks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

LISTENING = "0A"
OUTSIDE = "outside"
"""A peer that is not a pod: the tests and the probes."""
WATCH = """
import time
seen = set()
while True:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in open(table).readlines()[1:]:
            local, remote, state = line.split()[1:4]
            listening = state == "0A"
            if (local, remote, listening) not in seen:
                seen.add((local, remote, listening))
                print(local, remote, state, flush=True)
    time.sleep(0.1)
"""
"""Prints each socket of a network once; a closed one stays in the table of the closing side for a minute."""


@dataclass(frozen=True)
class Network:
    """The sockets that one pod's network has shown."""

    part: str
    address: str
    sockets: str
    """What `WATCH` has printed there."""


def arrows_seen(networks: Iterable[Network]) -> set[tuple[str, str, int]]:
    """Source, destination and port of each connection, by the names of the parts, without those inside a pod."""
    networks = list(networks)
    parts = {network.address: network.part for network in networks}
    return {
        (parts.get(client, OUTSIDE), parts.get(server, OUTSIDE), port)
        for network in networks
        for client, server, port in _connections(network)
    }


def _connections(network: Network) -> Iterator[tuple[str, str, int]]:
    sockets = [line.split() for line in network.sockets.splitlines()]
    listening = {_end(local)[1] for local, _, state in sockets if state == LISTENING}
    for local, remote, state in sockets:
        (here, port), (there, remote_port) = _end(local), _end(remote)
        if state == LISTENING or ip_address(there).is_loopback or here == there:
            continue
        yield (there, here, port) if port in listening else (here, there, remote_port)


def _end(text: str) -> tuple[str, int]:
    """Address and port in the kernel's format: 32-bit words, each in little-endian order."""
    words, _, port = text.partition(":")
    raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    address = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw).ipv4_mapped or IPv6Address(raw)
    return str(address), int(port, 16)
