"""The connections that an overlay's network policies allow.

An unknown field is an error, or it could allow more than is reported.
"""

from collections.abc import Iterator
from itertools import product
from typing import TypeAlias

from tests.k8s.parts import chosen_by
from tests.support.rendering import Object, objects_of

Arrow: TypeAlias = tuple[str, str, int | str]
"""Source, destination and port; pods elsewhere by namespace, slash and required labels.

A network is in CIDR notation. A TCP port is a number, a UDP port `UDP 53`, and a range `35672-35682`.
"""
PARTS = ("gateway", "worker", "migrate", "postgres", "rabbitmq")
API_SERVER = "anywhere"
"""An end without pods that a policy could name."""
NAMESPACE = "kubernetes.io/metadata.name"


def outwards(overlay: str) -> set[Arrow]:
    """The connections that the policies allow the source to open."""
    return set(_allowed(overlay, "egress", "to"))


def inwards(overlay: str) -> set[Arrow]:
    """The connections that the policies allow the destination to accept."""
    return {(other, own, port) for own, other, port in _allowed(overlay, "ingress", "from")}


def within(arrows: set[Arrow]) -> set[Arrow]:
    """The connections between pods of Inkwell."""
    return {arrow for arrow in arrows if set(arrow[:2]) <= set(PARTS)}


def policies(overlay: str) -> list[Object]:
    """The network policies."""
    return [each["spec"] for each in objects_of(overlay) if each["kind"] == "NetworkPolicy"]


def _allowed(overlay: str, direction: str, peers: str) -> Iterator[Arrow]:
    """The pod, the other end and the port of each connection that one direction of the policies allows."""
    for policy in policies(overlay):
        assert policy.keys() <= {"podSelector", "policyTypes", "ingress", "egress"}, policy
        assert direction not in policy or direction.capitalize() in policy["policyTypes"], f"void: {policy}"
        for rule in policy.get(direction, []):
            assert rule.keys() <= {peers, "ports"}, rule
            others = {name for peer in rule[peers] for name in _named(overlay, peer)} if peers in rule else {API_SERVER}
            assert others, "an empty list allows every peer"
            for own in chosen_by(overlay, policy["podSelector"]):
                yield from ((own, other, _port(port)) for other in others for port in rule["ports"])


def _named(overlay: str, peer: Object) -> set[str]:
    if peer.keys() == {"podSelector"}:
        return chosen_by(overlay, peer["podSelector"])
    if "ipBlock" in peer:
        assert peer == {"ipBlock": {"cidr": peer["ipBlock"]["cidr"]}}, peer
        return {peer["ipBlock"]["cidr"]}
    assert peer.keys() <= {"namespaceSelector", "podSelector"}, peer
    [namespace] = _labels_of(peer["namespaceSelector"])
    assert namespace.startswith(f"{NAMESPACE}="), peer
    return {f"{namespace.removeprefix(NAMESPACE)[1:]}/{labels}" for labels in _labels_of(peer.get("podSelector", {}))}


def _labels_of(selector: Object) -> set[str]:
    """Each set of labels that satisfies a selector."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}, selector
    choices = [[(key, value)] for key, value in selector.get("matchLabels", {}).items()]
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In", f"{each} is not understood"
        choices.append([(each["key"], value) for value in each["values"]])
    return {",".join(f"{key}={value}" for key, value in labels) for labels in product(*choices)}


def _port(port: Object) -> int | str:
    assert port.keys() <= {"protocol", "port", "endPort"}, port
    first: int = port["port"]
    number = f"{first}-{port['endPort']}" if "endPort" in port else first
    return number if port["protocol"] == "TCP" else f"{port['protocol']} {number}"
