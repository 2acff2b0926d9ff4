"""References between objects are correct; an API server or an operator would find a mistake late or never."""

import re
from typing import Any

import pytest
import yaml

from dev.backend import ROOT
from tests.k8s.parts import chosen_by, parts_of
from tests.k8s.references import references_of, there
from tests.support.rendering import (
    BUILDS,
    OVERLAYS,
    Object,
    containers_of,
    fields_of,
    find,
    makers_of,
    name_of,
    objects_of,
)

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    return [each for each in objects_of(overlay) if each["kind"] in kinds]


@pytest.mark.parametrize("overlay", BUILDS)
def test_whatever_is_named_is_there(overlay: str) -> None:
    known = set(there(overlay))

    assert [(owner, target) for owner, target in references_of(overlay) if target not in known] == []


@pytest.mark.parametrize("overlay", BUILDS)
def test_every_object_has_a_name_that_it_may_have(overlay: str) -> None:
    assert [name_of(each) for each in objects_of(overlay) if not NAME.fullmatch(each["metadata"]["name"])] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_choose_the_part_that_their_object_is_named_after(overlay: str) -> None:
    for each in objects_of(overlay):
        for field, value in fields_of(each):
            if field in ("selector", "labelSelector"):
                selector = {"matchLabels": value} if each["kind"] == "Service" else value
                assert chosen_by(overlay, selector) == {each["metadata"]["name"].removesuffix("-rw")}, name_of(each)


@pytest.mark.parametrize("overlay", BUILDS)
def test_every_volume_is_mounted_and_nothing_else_is(overlay: str) -> None:
    for maker in makers_of(overlay):
        claims = [each["metadata"] for each in maker["spec"].get("volumeClaimTemplates", [])]
        volumes = [each["name"] for each in claims + maker["spec"]["template"]["spec"]["volumes"]]
        containers = containers_of(maker["spec"]["template"])

        assert len(volumes) == len(set(volumes))
        assert {mount["name"] for each in containers for mount in each.get("volumeMounts", [])} == set(volumes)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_lead_to_ports_that_their_pods_have_and_from_inside_alone(overlay: str) -> None:
    for each in of_kind(overlay, "Service"):
        ports = parts_of(overlay)[each["metadata"]["name"].removesuffix("-rw")].ports

        assert each["spec"].keys() == {"selector", "ports"}
        assert all(ports[port["targetPort"]] == port["port"] for port in each["spec"]["ports"])


def test_ingress_is_https_alone_and_leads_to_a_port_of_the_gateways() -> None:
    ingress = find("production", "Ingress", "gateway")
    hosts = [rule["host"] for rule in ingress["spec"]["rules"]]
    [backend] = [path["backend"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]

    assert ingress["metadata"]["annotations"] == {"traefik.ingress.kubernetes.io/router.entrypoints": "websecure"}
    assert [tls["hosts"] for tls in ingress["spec"]["tls"]] == [hosts]
    assert backend["service"]["name"] == "gateway"
    assert backend["service"]["port"] in [
        {"name": port["name"]} for port in find("production", "Service", "gateway")["spec"]["ports"]
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_autoscalers_scale_what_they_are_named_after(overlay: str) -> None:
    for each in of_kind(overlay, "HorizontalPodAutoscaler", "ScaledObject"):
        assert each["spec"]["scaleTargetRef"]["name"] == each["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_gateways_are_counted_by_what_they_request(overlay: str) -> None:
    spec = find(overlay, "HorizontalPodAutoscaler", "gateway")["spec"]
    requests = [each["requests"] for each in parts_of(overlay)["gateway"].resources]

    assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]
    assert all(metric["resource"]["name"] in each for metric in spec["metrics"] for each in requests)


def test_what_prometheus_asks_is_what_it_asks_under_compose() -> None:
    under_compose = yaml.safe_load((ROOT / "observability/prometheus.yml").read_text())["scrape_configs"]
    jobs = dict(job for each in of_kind("production", "PodMonitor") for job in asked_by(each))

    assert (
        jobs.items()
        >= {
            each["job_name"]: (discovery["names"], discovery["port"], each.get("metrics_path"), each.get("params"))
            for each in under_compose
            for discovery in each["dns_sd_configs"]
        }.items()
    )


def asked_by(monitor: Object) -> list[tuple[str, Any]]:
    """The jobs of a PodMonitor: their targets, ports and paths."""
    [part] = chosen_by("production", monitor["spec"]["selector"])
    ports = parts_of("production")[part].ports
    return [
        (rule["replacement"], ([part], ports[end["port"]], end.get("path"), end.get("params")))
        for end in monitor["spec"]["podMetricsEndpoints"]
        for rule in end["relabelings"]
        if rule["targetLabel"] == "job"
    ]


def test_grafana_finds_the_dashboard() -> None:
    assert find("production", "ConfigMap", "inkwell-dashboard")["metadata"]["labels"]["grafana_dashboard"] == "1"
