"""The policies allow exactly these connections, including those from and to other namespaces."""

import pytest

from dev.backend import ROOT
from tests.k8s.arrows import API_SERVER, NAMESPACE, PARTS, Arrow, inwards, outwards, policies, within
from tests.support.rendering import COMPONENTS, OVERLAYS, fields_of

NAME_SERVERS = (
    "kube-system/k8s-app=kube-dns",
    "kube-system/k8s-app=node-local-dns",
    "169.254.20.10/32",
    "169.254.169.254/32",
)
BASE: set[Arrow] = {
    *((part, "postgres", 5432) for part in ("gateway", "worker", "migrate")),
    *((part, "rabbitmq", 5672) for part in ("gateway", "worker")),
    *((part, names, port) for part in PARTS for names in NAME_SERVERS for port in (53, "UDP 53")),
}
OPERATORS: set[Arrow] = {
    *((client, "postgres", port) for client in ("postgres", "cnpg-system/") for port in (5432, 8000)),
    *(("rabbitmq", "rabbitmq", port) for port in (4369, 25672, "35672-35682")),
    ("rabbitmq-system/", "rabbitmq", 15672),
    *(("postgres", API_SERVER, port) for port in (443, 6443)),
}
MONITORING: set[Arrow] = {
    *(("monitoring/", part, 9464) for part in ("gateway", "worker")),
    ("monitoring/", "rabbitmq", 15692),
    ("monitoring/", "postgres", 9187),
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
TRAEFIK = ("traefik/", "gateway", 8000)
CHANGES: dict[str, tuple[set[Arrow], set[Arrow]]] = {
    "argo-cd": (set(), set()),
    "flux": (set(), set()),
    "alb": ({("10.0.0.0/16", "gateway", 8000)}, {TRAEFIK}),
    "gce": ({(network, "gateway", 8000) for network in ("35.191.0.0/16", "130.211.0.0/22")}, {TRAEFIK}),
    "gateway-api": ({("envoy-gateway-system/", "gateway", 8000)}, {TRAEFIK}),
    "backups": (
        {
            ("postgres", "169.254.170.23/32", 80),
            ("postgres", "fd00:ec2::23/128", 80),
            ("postgres", "169.254.169.254/32", 80),
            ("postgres", "169.254.169.252/32", 988),
        },
        set(),
    ),
    "openshift": (
        {
            *(
                (part, "openshift-dns/dns.operator.openshift.io/daemonset-dns=default", port)
                for part in PARTS
                for port in (5353, "UDP 5353")
            ),
            ("openshift-ingress/", "gateway", 8000),
        },
        {*((part, names, port) for part in PARTS for names in NAME_SERVERS for port in (53, "UDP 53")), TRAEFIK},
    ),
    "tls": (
        {(part, "rabbitmq", 5671) for part in ("gateway", "worker")},
        {(part, "rabbitmq", 5672) for part in ("gateway", "worker")},
    ),
}
"""The connections that a component allows beside production's, and those of production that it does not."""


def test_each_component_changes_these_connections_and_no_others() -> None:
    before = ARROWS["production"]
    changes = {name: outwards(name) | inwards(name) for name in COMPONENTS}

    assert {name: (after - before, before - after) for name, after in changes.items()} == CHANGES
    assert all(within(after) <= outwards(name) & inwards(name) for name, after in changes.items())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_policies_allow_these_connections_and_no_others(overlay: str) -> None:
    assert outwards(overlay) | inwards(overlay) == ARROWS[overlay]
    assert within(ARROWS[overlay]) <= outwards(overlay) & inwards(overlay), "allowed by one end alone"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_no_policy_allows_is_denied(overlay: str) -> None:
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies(overlay)


def test_documentation_names_the_namespaces_that_are_expected() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    fields = [field for policy in policies("production") for field in fields_of(policy)]
    expected = {value for field, value in fields if field == NAMESPACE} - {"kube-system"}

    assert {name for name in expected if f"`{name}`" not in page} == set()
