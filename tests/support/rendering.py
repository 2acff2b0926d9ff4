"""What `kubectl apply -k` would send of each overlay."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.backend import ROOT

KUBECTL = str(Path(sys.executable).parent / "kubectl")
OVERLAYS = sorted(path.parent.name for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml"))
MAKERS = ("Deployment", "StatefulSet", "Job")
Object = dict[str, Any]


@cache
def text_of(overlay: str) -> str:
    """The overlay as kubectl builds it."""
    return built(ROOT / "k8s/overlays" / overlay)


def built(folder: Path) -> str:
    """What kubectl makes of a kustomization."""
    if not Path(KUBECTL).exists():
        pytest.skip("needs the dependency group kubernetes: `make .venv/kubernetes`")
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def objects_of(overlay: str) -> tuple[Object, ...]:
    """Its objects."""
    return tuple(yaml.safe_load_all(text_of(overlay)))


def find(overlay: str, kind: str, name: str) -> Object:
    """The object of this kind and name."""
    [found] = [each for each in objects_of(overlay) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def makers_of(overlay: str) -> list[Object]:
    """Those that make pods."""
    return [each for each in objects_of(overlay) if each["kind"] in MAKERS]


def pods_of(overlay: str) -> Iterator[tuple[str, Object]]:
    """The pods that the objects have made, each with its maker."""
    for each in makers_of(overlay):
        yield name_of(each), each["spec"]["template"]


def containers_of(pod: Object) -> Iterator[Object]:
    """All of its containers, those that run before the others, too."""
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def name_of(each: Object) -> str:
    """How a person calls an object."""
    return f"{each['kind']} {each['metadata']['name']}"


def fields_of(value: Any) -> Iterator[tuple[str, Any]]:
    """The fields of an object, and of whatever is in it."""
    if isinstance(value, dict):
        yield from value.items()
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from fields_of(each)
