"""Every connection that the policies allow, those from and to other namespaces too, is one of these."""

from collections.abc import Iterator
from typing import TypeAlias

import pytest

from tests.k8s.rendering import OVERLAYS, Object, objects_of

Arrow: TypeAlias = tuple[str, str, int]
"""From whom, to whom, to which port; a namespace ends with a slash."""
PARTS = ("gateway", "worker", "migrate", "postgres", "rabbitmq")
API_SERVER = "anywhere"
"""It has no pods that a policy could name."""
OTHER_LABELS = {"postgres": {"cnpg.io/cluster": "postgres"}}
"""What CloudNativePG gives its pods."""

BASE: set[Arrow] = {
    *((part, "postgres", 5432) for part in ("gateway", "worker", "migrate")),
    *((part, "rabbitmq", 5672) for part in ("gateway", "worker")),
    *((part, "kube-system/", 53) for part in PARTS),
}
OPERATORS: set[Arrow] = {
    *((client, "postgres", port) for client in ("postgres", "cnpg-system/") for port in (5432, 8000)),
    *(("rabbitmq", "rabbitmq", port) for port in (4369, 25672, 35672)),
    ("rabbitmq-system/", "rabbitmq", 15672),
    *((part, API_SERVER, port) for part in ("postgres", "rabbitmq") for port in (443, 6443)),
}
MONITORING: set[Arrow] = {
    *(("monitoring/", part, 9464) for part in ("gateway", "worker")),
    ("monitoring/", "rabbitmq", 15692),
    *((part, "monitoring/", port) for part in ("gateway", "worker") for port in (4317, 4318)),
}
ARROWS = {
    "dev": BASE,
    "production": BASE
    | OPERATORS
    | MONITORING
    | {
        ("keda/", "rabbitmq", 15672),
        ("traefik/", "gateway", 8000),
    },
}


def selected(selector: Object) -> set[str]:
    """The parts whose pods have what the selector asks."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    return {part for part in PARTS if _has(selector, {"inkwell/part": part} | OTHER_LABELS.get(part, {}))}


def _has(selector: Object, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def named(peer: Object) -> set[str]:
    if "namespaceSelector" in peer:
        return {peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] + "/"}
    return selected(peer["podSelector"])


def policies(overlay: str) -> list[Object]:
    return [each["spec"] for each in objects_of(overlay) if each["kind"] == "NetworkPolicy"]


def allowed(overlay: str, direction: str, peers: str) -> Iterator[tuple[str, str, int]]:
    """The pod, the other end and the port of each connection that one direction of the policies allows."""
    for policy in policies(overlay):
        for rule in policy.get(direction, []):
            others = {name for peer in rule[peers] for name in named(peer)} if peers in rule else {API_SERVER}
            for own in selected(policy["podSelector"]):
                yield from ((own, other, port["port"]) for other in others for port in rule["ports"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_policies_allow_these_connections_and_no_others(overlay: str) -> None:
    outwards = set(allowed(overlay, "egress", "to"))
    inwards = {(other, own, port) for own, other, port in allowed(overlay, "ingress", "from")}

    assert outwards | inwards == ARROWS[overlay]
    within = {arrow for arrow in ARROWS[overlay] if set(arrow[:2]) <= set(PARTS)}
    assert within <= outwards & inwards, "allowed by one end alone"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_no_policy_allows_is_denied(overlay: str) -> None:
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies(overlay)
