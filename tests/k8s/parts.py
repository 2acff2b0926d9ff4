"""The parts of an overlay: their pods' labels and ports, including those of operators."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from tests.support.rendering import Object, containers_of, objects_of, pods_of

PART = "inkwell/part"
POSTGRES_PORTS = {"postgres": 5432, "metrics": 9187, "status": 8000}
"""The ports of CloudNativePG's pods."""
RABBITMQ_PORTS = {"amqp": 5672, "management": 15672, "prometheus": 15692}


@dataclass(frozen=True)
class Part:
    """The pods of one kind."""

    labels: dict[str, str]
    ports: dict[str, int]
    service: str | None = None
    """The Service that an operator creates for them."""
    resources: list[Object] = field(default_factory=list)
    """The ports of each container."""


@cache
def parts_of(overlay: str) -> dict[str, Part]:
    """The parts by name."""
    found = list(_parts(overlay))
    parts = {part.labels[PART]: part for part in found}
    assert len(parts) == len(found), "a part is made twice"
    return parts


def chosen_by(overlay: str, selector: Object) -> set[str]:
    """The parts whose pods match a selector; one that matches none, or has other fields, is a mistake."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}, selector
    chosen = {name for name, part in parts_of(overlay).items() if _has(part.labels, selector)}
    assert chosen, f"{selector} selects no part"
    return chosen


def services_of(overlay: str) -> dict[str, str]:
    """The part behind the name of each Service, including those of operators."""
    own = [each for each in objects_of(overlay) if each["kind"] == "Service"]
    return {part.service: name for name, part in parts_of(overlay).items() if part.service} | {
        each["metadata"]["name"]: chosen_by(overlay, {"matchLabels": each["spec"]["selector"]}).pop() for each in own
    }


def _parts(overlay: str) -> Iterator[Part]:
    for _, pod in pods_of(overlay):
        containers = list(containers_of(pod))
        ports = {port["name"]: port["containerPort"] for each in containers for port in each.get("ports", [])}
        yield Part(pod["metadata"]["labels"], ports, resources=[each.get("resources", {}) for each in containers])
    for each in objects_of(overlay):
        name, spec = each["metadata"]["name"], each.get("spec", {})
        if each["kind"] == "Cluster":
            labels = spec["inheritedMetadata"]["labels"] | {"cnpg.io/cluster": name}
            yield Part(labels, POSTGRES_PORTS, f"{name}-rw", [spec.get("resources", {})])
        elif each["kind"] == "RabbitmqCluster":
            labels = spec["override"]["statefulSet"]["spec"]["template"]["metadata"]["labels"]
            yield Part(labels, RABBITMQ_PORTS, name, [spec.get("resources", {})])


def _has(labels: dict[str, str], selector: Object) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions), selector
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )
