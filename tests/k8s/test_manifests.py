"""Every overlay can be applied: it builds, and Kubernetes knows every object field by field."""

import pytest
from kubernetes_validate import ValidationError, validate

from dev.alerts import OBJECT, rule_object
from tests.k8s.custom import is_custom
from tests.support.rendering import OVERLAYS, find, name_of, objects_of

VERSIONS = ("1.35.0", "1.36.0", "1.37.0")
"""Kubernetes maintains its own last three."""
BUILT_IN = {
    *("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Ingress", "Job", "Namespace", "NetworkPolicy"),
    *("PodDisruptionBudget", "Secret", "Service", "ServiceAccount", "StatefulSet"),
}
"""The kinds that this folder's tests cover; a new kind needs more tests."""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_to_the_last_field(overlay: str, version: str) -> None:
    wrong = []
    for each in objects_of(overlay):
        if not is_custom(each):
            try:
                validate(each, version, strict=True)
            except ValidationError as error:
                wrong.append(f"{name_of(each)}: {error}")

    assert not wrong


def test_no_kind_of_object_is_left_unchecked() -> None:
    objects = [each for overlay in OVERLAYS for each in objects_of(overlay)]

    assert {each["kind"] for each in objects if not is_custom(each)} <= BUILT_IN


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_namespace_takes_no_pod_that_is_not_restricted(overlay: str) -> None:
    labels = find(overlay, "Namespace", "inkwell")["metadata"]["labels"]

    assert {labels[f"pod-security.kubernetes.io/{each}"] for each in ("enforce", "audit", "warn")} == {"restricted"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_object_is_there_twice_and_all_are_in_the_namespace(overlay: str) -> None:
    objects = objects_of(overlay)
    names = [(each["apiVersion"], name_of(each)) for each in objects]

    assert len(names) == len(set(names))
    assert {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"} == {"inkwell"}


def test_alerts_are_those_of_compose() -> None:
    assert OBJECT.read_text() == rule_object(), "run `make generate`"
