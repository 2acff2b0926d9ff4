"""Every overlay can be applied: it builds, and every object is one that Kubernetes knows, field by field."""

import jsonschema
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from kubernetes_validate import ValidationError, validate

from dev.alerts import OBJECT, rule_object
from dev.backend import ROOT
from tests.k8s.rendering import OVERLAYS, Object, name_of, objects_of

VERSIONS = ("1.35.0", "1.36.0", "1.37.0")
"""Kubernetes itself looks after three."""
BUILT_IN = ("", "apps", "autoscaling", "batch", "networking.k8s.io", "policy")
MODELS = {model.__name__: model for model in (ScaledObject, TriggerAuthentication, PodMonitor, PrometheusRule)}
"""Made of the schemas that KEDA and the Prometheus Operator publish."""
SCHEMAS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "tests/k8s/schemas").glob("*.yaml")}


def group_of(each: Object) -> str:
    """The API group of an object; the oldest one has no name."""
    group, slash, _ = each["apiVersion"].partition("/")
    return group if slash else ""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_to_the_last_field(overlay: str, version: str) -> None:
    wrong = []
    for each in objects_of(overlay):
        if group_of(each) in BUILT_IN:
            try:
                validate(each, version, strict=True)
            except ValidationError as error:
                wrong.append(f"{name_of(each)}: {error}")

    assert not wrong


@pytest.mark.parametrize("each", [each for each in objects_of("production") if each["kind"] in MODELS], ids=name_of)
def test_object_of_an_operator_is_valid_and_loses_no_field(each: Object) -> None:
    understood = MODELS[each["kind"]].model_validate(each)

    assert understood.model_dump(mode="json", by_alias=True, exclude_unset=True) == each


@pytest.mark.parametrize("each", [each for each in objects_of("production") if group_of(each) in SCHEMAS], ids=name_of)
def test_object_of_an_operator_has_the_fields_that_it_knows(each: Object) -> None:
    jsonschema.validate(each, SCHEMAS[group_of(each)][each["kind"]])


def test_no_kind_of_object_is_left_unchecked() -> None:
    objects = [each for overlay in OVERLAYS for each in objects_of(overlay)]

    assert {group_of(each) for each in objects if each["kind"] not in MODELS} <= {*BUILT_IN, *SCHEMAS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_object_is_there_twice_and_all_are_in_the_namespace(overlay: str) -> None:
    objects = objects_of(overlay)
    names = [(each["apiVersion"], name_of(each)) for each in objects]

    assert len(names) == len(set(names))
    assert {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"} == {"inkwell"}


def test_alerts_are_those_of_compose() -> None:
    assert OBJECT.read_text() == rule_object(), "make k8s writes it anew"
