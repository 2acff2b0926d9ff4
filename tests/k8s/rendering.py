"""What `kubectl apply -k` would send of each overlay."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dev.backend import ROOT

KUBECTL = str(Path(sys.executable).parent / "kubectl")
OVERLAYS = sorted(path.parent.name for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml"))
Object = dict[str, Any]


@cache
def text_of(overlay: str) -> str:
    """The overlay as kubectl builds it."""
    command = [KUBECTL, "kustomize", str(ROOT / "k8s/overlays" / overlay)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return built.stdout


@cache
def objects_of(overlay: str) -> tuple[Object, ...]:
    """Its objects."""
    return tuple(yaml.safe_load_all(text_of(overlay)))


def find(overlay: str, kind: str, name: str) -> Object:
    """The object of this kind and name."""
    [found] = [each for each in objects_of(overlay) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods_of(overlay: str) -> Iterator[tuple[str, Object]]:
    """The pods that the objects have made, each with its maker."""
    for each in objects_of(overlay):
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield f"{each['kind']} {each['metadata']['name']}", each["spec"]["template"]


def containers_of(pod: Object) -> Iterator[Object]:
    """All of its containers, those that run before the others, too."""
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def name_of(each: Object) -> str:
    """How a person calls an object."""
    return f"{each['kind']} {each['metadata']['name']}"


def arrows_of(overlay: str) -> set[tuple[str, str, int]]:
    """Who may connect to whom at which port, by the parts' names: what one policy lets out and another one lets in."""
    policies = [each["spec"] for each in objects_of(overlay) if each["kind"] == "NetworkPolicy"]
    out = {arrow for policy in policies for arrow in _arrows(policy, "egress")}
    into = {(peer, part, port) for policy in policies for part, peer, port in _arrows(policy, "ingress")}
    return out & into


def _arrows(policy: Object, direction: str) -> Iterator[tuple[str, str, int]]:
    for rule in policy.get(direction, []):
        peers = [part for peer in rule.get("to" if direction == "egress" else "from", []) for part in _parts(peer)]
        for part in _parts(policy):
            yield from ((part, peer, port["port"]) for peer in peers for port in rule["ports"])


def _parts(selecting: Object) -> list[str]:
    """The parts of Inkwell that a policy or a peer selects; none where it selects pods of another namespace."""
    selector = selecting.get("podSelector", {})
    if "namespaceSelector" in selecting:
        return []
    one = selector.get("matchLabels", {}).get("inkwell/part")
    several = [value for each in selector.get("matchExpressions", []) for value in each["values"]]
    return [one] if one else several
