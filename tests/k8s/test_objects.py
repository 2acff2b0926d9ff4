"""Every object is one that Kubernetes and the operators accept, and mistakes in them are found."""

from copy import deepcopy
from typing import Any

import pytest

from dev.alerts import OBJECT, rule_object
from tests.k8s.rules import WITHOUT_DEFINITION, complaints_about, is_custom
from tests.support.rendering import BUILDS, OVERLAYS, Object, find, name_of, objects_of

REMOVED = object()
POD = "spec.override.statefulSet.spec.template.spec"
TRIGGER = "spec.triggers.0.metadata"
REFUSED: list[tuple[str, str, Any]] = [
    ("Cluster", "spec.instances", 3.5),
    ("Cluster", "spec.instances", 0),
    ("Cluster", "spec.instances", "3"),
    ("Cluster", "spec.instnces", 3),
    ("Cluster", "spec.affinity.podAntiAffinityType", "requird"),
    ("Cluster", "spec.affinity.topologyKey", "kubernetes.io/hostnam"),
    ("Cluster", "spec.storage", {"size": "50 GiB"}),
    ("Cluster", "spec.walStorage.size", "10GiB"),
    ("Cluster", "spec.resources.limits.memory", "2 Gi"),
    ("Cluster", "spec.postgresql.parameters.port", "5433"),
    ("Cluster", "spec.postgresql.parameters.archive_mode", "off"),
    ("Cluster", "spec.postgresql.parameters.ssl_min_protocol_version", "TLSv1.3"),
    ("Cluster", "spec.postgresql.parameters.max_connections", 200),
    ("Cluster", "spec.postgresql.synchronous.method", "all"),
    ("Cluster", "spec.topologySpreadConstraints.0.whenUnsatisfiable", "SchedulAnyway"),
    ("Cluster", "spec.topologySpreadConstraints.0.maxSkew", 0),
    ("Cluster", "spec.managed.roles.1.name", "inkwell_worker"),
    ("RabbitmqCluster", "spec.image", "rabbitmq:4.1.4"),
    ("RabbitmqCluster", "spec.image", "rabbitmq:4.3.6"),
    ("RabbitmqCluster", "spec.image", "rabbitmq:4.1.4-management"),
    ("RabbitmqCluster", "spec.image", "rabbitmq:3.13-management"),
    ("RabbitmqCluster", "spec.image", "rabbitmq:3.13.7-management"),
    ("RabbitmqCluster", "spec.image", "rabbitmq:4.3.0-management"),
    ("RabbitmqCluster", "spec.terminationGracePeriodSeconds", 0),
    ("RabbitmqCluster", "spec.persistence.storage", "20 Gi"),
    ("RabbitmqCluster", "spec.rabbitmq.additionalPlugins", ["rabbitmq shovel"]),
    ("RabbitmqCluster", f"{POD}.initContainers.0.name", "setup-contianer"),
    ("RabbitmqCluster", f"{POD}.containers.0.name", "rabitmq"),
    ("RabbitmqCluster", f"{POD}.containers.1", {"name": "rabbitmq"}),
    ("RabbitmqCluster", f"{POD}.containers.0.livenessProbe.periodSeconds", 0),
    ("RabbitmqCluster", f"{POD}.topologySpreadConstraints.0.topologyKey", "topology.kubernetes.io/zon"),
    ("RabbitmqCluster", f"{POD}.topologySpreadConstraints.0.whenUnsatisfiable", "DoNotScheduel"),
    ("RabbitmqCluster", f"{POD}.securityContext.seccompProfile.type", "RuntimDefault"),
    ("ScaledObject", "spec.pollingInterval", 0),
    ("ScaledObject", "spec.minReplicaCount", 9),
    ("ScaledObject", f"{TRIGGER}.mode", "QueueLenght"),
    ("ScaledObject", f"{TRIGGER}.useRegex", REMOVED),
    ("ScaledObject", f"{TRIGGER}.useRegex", "false"),
    ("ScaledObject", f"{TRIGGER}.protocol", "https"),
    ("ScaledObject", f"{TRIGGER}.value", "many"),
    ("ScaledObject", f"{TRIGGER}.queuName", "inkwell"),
    ("Policy", "spec.applyTo", "quorum_queue"),
    ("Policy", "spec.priority", "1"),
    ("User", "spec.tags", ["monitor"]),
    ("Permission", "spec.permissions.read", ["^$"]),
    ("TriggerAuthentication", "spec.secretTargetRef.0.key", REMOVED),
    ("PrometheusRule", "spec.groups.1.name", "inkwell-gone"),
    ("PrometheusRule", "spec.groups.0.rules.0.for", "10 minutes"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.relabelings.0.action", "replce"),
    ("Deployment", "spec.template.spec.containers.1", {"name": "gateway", "image": "inkwell"}),
    ("Deployment", "spec.template.spec.terminationGracePeriodSeconds", 0),
    ("Deployment", "spec.template.spec.topologySpreadConstraints.0.whenUnsatisfiable", "SchedulAnyway"),
    ("Deployment", "spec.template.spec.volumes.0.name", "tmp"),
    ("Deployment", "spec.template.spec.containers.0.resources.requests.memory", "320 Mi"),
    ("Deployment", "spec.template.spec.containers.0.imagePullPolicy", "IfNotPresnt"),
    ("NetworkPolicy", "spec.policyTypes", ["Egres"]),
    ("PodDisruptionBudget", "spec.unhealthyPodEvictionPolicy", "AlwaysAlow"),
    ("Ingress", "spec.rules.0.http.paths.0.pathType", "Prefx"),
]
"""A field of the first object of a kind in the production overlay, and a value that it must not have."""
ACCEPTED: list[tuple[str, str, Any]] = [
    ("Cluster", "spec.imagePullSecrets", [{"name": "registry"}]),
    ("Cluster", "spec.securityContext", {"runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}),
    ("Cluster", "spec.postgresql.parameters.work_mem", "8MB"),
    ("RabbitmqCluster", "spec.imagePullSecrets", [{"name": "registry"}]),
    ("RabbitmqCluster", "spec.tls", {"secretName": "rabbitmq-tls"}),
    ("RabbitmqCluster", "spec.rabbitmq.additionalConfig", "# three kilobytes, each line of which is fine\n" * 70),
    ("RabbitmqCluster", "spec.image", "registry.example.com/library/rabbitmq:4.2.9-management"),
    ("RabbitmqCluster", f"{POD}.containers.1", {"name": "exporter", "image": "exporter:1.0"}),
    ("Policy", "spec.applyTo", "streams"),
    ("Policy", "spec.priority", 1),
    ("User", "spec.limits", {"connections": 20}),
    ("ScaledObject", f"{TRIGGER}.excludeUnacknowledged", "true"),
    ("Deployment", "spec.template.spec.imagePullSecrets", [{"name": "registry"}]),
    ("ServiceAccount", "imagePullSecrets", [{"name": "registry"}]),
]


def changed(kind: str, path: str, value: Any) -> Object:
    """A copy of the first object of a kind with another value at a path, or without it."""
    copy = deepcopy(next(each for each in objects_of("production") if each["kind"] == kind))
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    holder: Any = copy
    for step in steps:
        holder = holder[step]
    if value is REMOVED:
        del holder[last]
    elif isinstance(holder, list) and last == len(holder):
        holder.append(value)
    else:
        holder[last] = value
    return copy


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("custom", [False, True], ids=["of Kubernetes", "of operators"])
def test_every_object_is_valid_to_the_last_field(build: str, custom: bool) -> None:  # noqa: FBT001 - a parameter
    objects = [each for each in objects_of(build) if is_custom(each) is custom]

    assert {name_of(each): found for each in objects if (found := complaints_about(each))} == {}


@pytest.mark.parametrize(("kind", "path", "value"), REFUSED)
def test_mistake_is_found(kind: str, path: str, value: Any) -> None:
    assert complaints_about(changed(kind, path, value))


@pytest.mark.parametrize(("kind", "path", "value"), ACCEPTED)
def test_what_operators_take_is_no_mistake(kind: str, path: str, value: Any) -> None:
    assert complaints_about(changed(kind, path, value)) == []


def test_only_components_that_no_overlay_includes_may_lack_a_definition() -> None:
    groups = {each["apiVersion"].rpartition("/")[0] for overlay in OVERLAYS for each in objects_of(overlay)}

    assert not groups & {*WITHOUT_DEFINITION}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_namespace_takes_no_pod_that_is_not_restricted(overlay: str) -> None:
    labels = find(overlay, "Namespace", "inkwell")["metadata"]["labels"]

    assert {labels[f"pod-security.kubernetes.io/{each}"] for each in ("enforce", "audit", "warn")} == {"restricted"}


@pytest.mark.parametrize("build", BUILDS)
def test_no_object_is_there_twice_and_all_are_in_the_namespace(build: str) -> None:
    objects = objects_of(build)
    names = [(each["apiVersion"], name_of(each)) for each in objects]

    assert len(names) == len(set(names))
    assert {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"} == {"inkwell"}


def test_alerts_are_those_of_compose() -> None:
    assert OBJECT.read_text() == rule_object(), "run `make generate`"
