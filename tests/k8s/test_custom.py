"""Operators know every field of their objects, and an invalid field is found."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest

from tests.k8s.custom import MODELS, SCHEMAS, complaint_about, is_custom
from tests.support.rendering import OVERLAYS, Object, name_of, objects_of

CUSTOM = [each for overlay in OVERLAYS for each in objects_of(overlay) if is_custom(each)]
FREE = ("annotations", "definition", "labels", "limits", "matchLabels", "metadata", "parameters", "params", "requests")
"""Fields with names that users choose."""
NEEDED = {
    "Cluster": ("spec.instances", "spec.bootstrap.initdb.secret.name", "spec.postgresql.synchronous.method"),
    "RabbitmqCluster": (
        "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution.0.topologyKey",
        "spec.override.statefulSet.spec.template.spec.topologySpreadConstraints.0.maxSkew",
        "spec.override.statefulSet.spec.template.spec.containers.0.name",
    ),
    "User": ("spec.rabbitmqClusterReference",),
    "Permission": ("spec.rabbitmqClusterReference", "spec.permissions", "spec.vhost"),
    "Policy": ("spec.rabbitmqClusterReference", "spec.definition", "spec.name", "spec.pattern"),
    "ScaledObject": ("spec.scaleTargetRef", "spec.triggers.0.type"),
    "TriggerAuthentication": ("spec.secretTargetRef.0.name", "spec.secretTargetRef.0.key"),
    "PodMonitor": ("spec.selector",),
    "PrometheusRule": ("spec.groups.0.name", "spec.groups.0.rules.0.expr"),
}
Change = Callable[[Any, str | int], None]


def misspell(holder: Any, key: str | int) -> None:
    holder[f"{key}x"] = holder.pop(key)


def mistype(holder: Any, key: str | int) -> None:
    holder[key] = True if isinstance(holder[key], str) else "several"


def leave_out(holder: Any, key: str | int) -> None:
    del holder[key]


def changed(each: Object, path: tuple[str | int, ...], change: Change) -> Object:
    copy = deepcopy(each)
    holder: Any = copy
    for step in path[:-1]:
        holder = holder[step]
    change(holder, path[-1])
    return copy


def paths_of(value: Any) -> Iterator[tuple[str | int, ...]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        if isinstance(value, dict):
            yield (step,)
        if step not in FREE:
            yield from ((step, *path) for path in paths_of(inner))


@pytest.mark.parametrize("each", CUSTOM, ids=name_of)
def test_operators_know_each_field(each: Object) -> None:
    assert complaint_about(each) is None


@pytest.mark.parametrize("change", [misspell, mistype])
@pytest.mark.parametrize("each", CUSTOM, ids=name_of)
def test_no_field_can_be_misspelt_or_of_another_type(each: Object, change: Change) -> None:
    paths = list(paths_of({"spec": each["spec"]}))

    assert not [path for path in paths if not complaint_about(changed(each, path, change))]


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in NEEDED.items() for path in paths])
def test_no_required_field_can_be_left_out(kind: str, path: str) -> None:
    each = next(each for each in CUSTOM if each["kind"] == kind)
    steps = tuple(int(step) if step.isdigit() else step for step in path.split("."))

    assert complaint_about(changed(each, steps, leave_out))


def test_every_kind_is_tried() -> None:
    assert (
        {each["kind"] for each in CUSTOM}
        == {*NEEDED}
        == {*MODELS, *(kind for kinds in SCHEMAS.values() for kind in kinds)}
    )
