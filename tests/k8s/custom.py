"""Validates custom resources strictly against the schemas that their operators publish."""

import json

import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from pydantic import ValidationError

from dev.backend import ROOT
from tests.support.rendering import Object

MODELS = {model.__name__: model for model in (ScaledObject, TriggerAuthentication, PodMonitor, PrometheusRule)}
SCHEMAS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "tests/k8s/schemas").glob("*.yaml")}
"""The schemas by API group and kind; schemas/README.md names their sources."""
VALIDATORS = {
    (group, kind): Draft202012Validator(schema) for group, kinds in SCHEMAS.items() for kind, schema in kinds.items()
}


def group_of(each: Object) -> str:
    """The API group of an object; the core group has no name."""
    group, slash, _ = each["apiVersion"].partition("/")
    return group if slash else ""


def is_custom(each: Object) -> bool:
    """Whether its kind is defined by an operator and not by Kubernetes."""
    return each["kind"] in MODELS or group_of(each) in SCHEMAS


def complaint_about(each: Object) -> str | None:
    """The errors in a custom resource."""
    if each["kind"] in MODELS:
        return complaint_of_model(each)
    error = best_match(VALIDATORS[group_of(each), each["kind"]].iter_errors(each))
    return error and str(error)


def complaint_of_model(each: Object) -> str | None:
    """The errors found by a model, which ignores unknown fields and converts values to their types."""
    try:
        understood = MODELS[each["kind"]].model_validate(each)
    except ValidationError as error:
        return str(error)
    written = understood.model_dump(mode="json", by_alias=True, exclude_unset=True)
    same = json.dumps(written, sort_keys=True) == json.dumps(each, sort_keys=True)  # as text, where 1 differs from true
    return None if same else f"understood as {written}"
