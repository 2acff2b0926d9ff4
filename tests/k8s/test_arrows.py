"""The policies allow exactly these connections, including those from and to other namespaces."""

import pytest

from dev.backend import ROOT
from tests.k8s.arrows import API_SERVER, NAMESPACE, PARTS, Arrow, inwards, outwards, policies, within
from tests.support.rendering import OVERLAYS, fields_of

NAME_SERVERS = ("kube-system/k8s-app=kube-dns", "169.254.20.10/32", "169.254.169.254/32")
BASE: set[Arrow] = {
    *((part, "postgres", 5432) for part in ("gateway", "worker", "migrate")),
    *((part, "rabbitmq", 5672) for part in ("gateway", "worker")),
    *((part, names, port) for part in PARTS for names in NAME_SERVERS for port in (53, "UDP 53")),
}
OPERATORS: set[Arrow] = {
    *((client, "postgres", port) for client in ("postgres", "cnpg-system/") for port in (5432, 8000)),
    *(("rabbitmq", "rabbitmq", port) for port in (4369, 25672, "35672-35682")),
    ("rabbitmq-system/", "rabbitmq", 15672),
    *((part, API_SERVER, port) for part in ("postgres", "rabbitmq") for port in (443, 6443)),
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
