"""Which connections the policies of an overlay allow."""

from collections.abc import Iterator
from typing import TypeAlias

from tests.k8s.rendering import Object, objects_of

Arrow: TypeAlias = tuple[str, str, int]
"""From whom, to whom, to which port; a namespace ends with a slash, a network has one before its bits."""
PARTS = ("gateway", "worker", "migrate", "postgres", "rabbitmq")
API_SERVER = "anywhere"
"""It has no pods that a policy could name."""
OTHER_LABELS = {"postgres": {"cnpg.io/cluster": "postgres"}}
"""What CloudNativePG gives its pods."""


def outwards(overlay: str) -> set[Arrow]:
    """What the ends that begin a connection may do."""
    return set(_allowed(overlay, "egress", "to"))


def inwards(overlay: str) -> set[Arrow]:
    """What the other ends let in."""
    return {(other, own, port) for own, other, port in _allowed(overlay, "ingress", "from")}


def within(arrows: set[Arrow]) -> set[Arrow]:
    """Those between pods of Inkwell."""
    return {arrow for arrow in arrows if set(arrow[:2]) <= set(PARTS)}


def policies(overlay: str) -> list[Object]:
    """The network policies."""
    return [each["spec"] for each in objects_of(overlay) if each["kind"] == "NetworkPolicy"]


def _allowed(overlay: str, direction: str, peers: str) -> Iterator[Arrow]:
    """The pod, the other end and the port of each connection that one direction of the policies allows."""
    for policy in policies(overlay):
        for rule in policy.get(direction, []):
            others = {name for peer in rule[peers] for name in _named(peer)} if peers in rule else {API_SERVER}
            for own in _selected(policy["podSelector"]):
                yield from ((own, other, port["port"]) for other in others for port in rule["ports"])


def _named(peer: Object) -> set[str]:
    if "ipBlock" in peer:
        assert peer["ipBlock"].keys() == {"cidr"}
        return {peer["ipBlock"]["cidr"]}
    if "namespaceSelector" in peer:
        return {peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] + "/"}
    return _selected(peer["podSelector"])


def _selected(selector: Object) -> set[str]:
    """The parts whose pods have what the selector asks."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    return {part for part in PARTS if _has(selector, {"inkwell/part": part} | OTHER_LABELS.get(part, {}))}


def _has(selector: Object, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )
