"""The objects that `kubectl apply -k` would send for each overlay."""

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
    """The overlay's YAML, as kubectl builds it."""
    return built(ROOT / "k8s/overlays" / overlay)


def built(folder: Path) -> str:
    """The YAML that kubectl builds from a kustomization."""
    if not Path(KUBECTL).exists():
        pytest.skip("needs the dependency group kubernetes: `make .venv/kubernetes`")
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def objects_of(overlay: str) -> tuple[Object, ...]:
    """The overlay's objects."""
    return tuple(yaml.safe_load_all(text_of(overlay)))


def find(overlay: str, kind: str, name: str) -> Object:
    """The object of this kind and name."""
    [found] = [each for each in objects_of(overlay) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def makers_of(overlay: str) -> list[Object]:
    """The objects that create pods."""
    return [each for each in objects_of(overlay) if each["kind"] in MAKERS]


def pods_of(overlay: str) -> Iterator[tuple[str, Object]]:
    """Each pod template with the name of the object that owns it."""
    for each in makers_of(overlay):
        yield name_of(each), each["spec"]["template"]


def containers_of(pod: Object) -> Iterator[Object]:
    """All containers of the pod, init containers included."""
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def name_of(each: Object) -> str:
    """The kind and name of an object, for messages."""
    return f"{each['kind']} {each['metadata']['name']}"


def fields_of(value: Any) -> Iterator[tuple[str, Any]]:
    """All fields of an object, nested ones included."""
    if isinstance(value, dict):
        yield from value.items()
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from fields_of(each)
