"""A platform team's rules for every pod, container and image."""

import re

import pytest

from tests.k8s.containers import refuse_unknown
from tests.k8s.parts import parts_of
from tests.k8s.rules import quantity
from tests.support.rendering import OVERLAYS, Object, containers_of, fields_of, find, makers_of, objects_of, pods_of

HASTE_SECONDS = 30
NOTICED_SECONDS = 5
"""The longest time until no more requests reach a terminating pod."""
PROBES = {"startupProbe", "livenessProbe", "readinessProbe"}
ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
ALLOWED_VOLUMES |= {"secret"}
POD_CASES = [pytest.param(pod, id=f"{overlay}: {name}") for overlay in OVERLAYS for name, pod in pods_of(overlay)]
CONTAINERS = [
    pytest.param(container, id=f"{overlay}: {name}, {container['name']}")
    for overlay in OVERLAYS
    for name, pod in pods_of(overlay)
    for container in containers_of(pod)
]


@pytest.mark.parametrize("pod", POD_CASES)
def test_pod_keeps_to_the_restricted_profile(pod: Object) -> None:
    spec = pod["spec"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert {kind for volume in spec.get("volumes", []) for kind in volume.keys() - {"name"}} <= ALLOWED_VOLUMES


@pytest.mark.parametrize("pod", POD_CASES)
def test_pod_has_no_token_and_an_account_of_its_own(pod: Object) -> None:
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["serviceAccountName"] not in ("", "default")


@pytest.mark.parametrize("container", CONTAINERS)
def test_container_keeps_to_the_restricted_profile(container: Object) -> None:
    context = container["securityContext"]

    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"] is True
    assert not context.keys() & {"privileged", "runAsUser", "seccompProfile", "procMount"}
    assert not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_container_says_what_it_needs_and_may_have_no_less(overlay: str) -> None:
    for each in (each for part in parts_of(overlay).values() for each in part.resources):
        requests, limits = each["requests"], each["limits"]

        assert requests.keys() == limits.keys() == {"cpu", "memory"}
        assert all(0 < quantity(requests[kind]) <= quantity(limits[kind]) for kind in requests), each


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_image_has_a_version(overlay: str) -> None:
    fields = [field for each in objects_of(overlay) for field in fields_of(each)]
    images = {str(value).partition("@")[0] for field, value in fields if field in ("image", "imageName")}

    assert [image for image in images if not re.search(r":\d[\w.-]*$", image)] == []


@pytest.mark.parametrize("pod", POD_CASES)
def test_containers_that_serve_are_asked_whether_they_do(pod: Object) -> None:
    ends = pod["spec"].get("restartPolicy") == "Never"
    for container in pod["spec"]["containers"]:
        assert (container.keys() & PROBES) == (set() if ends else PROBES)


@pytest.mark.parametrize("pod", POD_CASES)
def test_nothing_is_started_anew_in_a_hurry(pod: Object) -> None:
    for probe in (each["livenessProbe"] for each in pod["spec"]["containers"] if "livenessProbe" in each):
        assert probe["periodSeconds"] * probe.get("failureThreshold", 3) >= HASTE_SECONDS


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", ["gateway", "worker"])
def test_service_is_alive_whatever_else_is_down(overlay: str, service: str) -> None:
    [container] = find(overlay, "Deployment", service)["spec"]["template"]["spec"]["containers"]
    ready, alive, started = (container[f"{probe}Probe"]["httpGet"] for probe in ("readiness", "liveness", "startup"))

    assert alive == started == ready | {"path": "/health/live"}
    assert ready["path"] == "/health/ready"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_release_removes_no_capacity_and_gateways_serve_until_no_more_requests_come(overlay: str) -> None:
    gateway, worker = (find(overlay, "Deployment", name)["spec"] for name in ("gateway", "worker"))
    [container] = gateway["template"]["spec"]["containers"]

    assert gateway["strategy"] == worker["strategy"] == {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] >= 2 * NOTICED_SECONDS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_nothing_that_would_be_left_out_where_tests_run_them(overlay: str) -> None:
    for maker in makers_of(overlay):
        refuse_unknown(maker)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_migration_that_fails_is_tried_again(overlay: str) -> None:
    [job] = [each["spec"] for each in makers_of(overlay) if each["kind"] == "Job"]

    assert job["backoffLimit"] > 0


def test_production_brings_no_secret_along() -> None:
    assert not [each for each in objects_of("production") if each["kind"] == "Secret"]
    assert "development-only" not in str(objects_of("production"))
