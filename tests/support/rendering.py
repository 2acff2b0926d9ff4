"""The objects that `kubectl apply -k` would send for each overlay, and with each snippet of docs/kubernetes.md."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from typing import Any

import pytest
import yaml

from dev.backend import ROOT

KUBECTL = str(Path(sys.executable).parent / "kubectl")
OVERLAYS = sorted(path.parent.name for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml"))
PAGE = (ROOT / "docs/kubernetes.md").read_text()
REMOTE = re.compile(r"https://git\.example\.com/inkwell\.git//(\S+)\?ref=v[\d.]+")
"""The addresses by which the page's snippets refer to folders of a release."""
SNIPPETS = {
    f"docs {number}": dedent(block) for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL), 1)
}
"""Parts of an overlay that docs/kubernetes.md describes."""
COMPONENTS = ("alb", "argo-cd", "backups", "flux", "gateway-api", "gce", "openshift", "tls")
"""The components that no overlay here includes."""
SNIPPETS |= {
    name: f"components: [https://git.example.com/inkwell.git//k8s/components/{name}?ref=v1]" for name in COMPONENTS
}
BUILDS = (*OVERLAYS, *SNIPPETS)
MAKERS = ("Deployment", "StatefulSet", "Job")
Object = dict[str, Any]


@cache
def text_of(overlay: str) -> str:
    """The YAML of an overlay, or of production with a snippet, as kubectl builds it."""
    return with_snippet(SNIPPETS[overlay]) if overlay in SNIPPETS else built(ROOT / "k8s/overlays" / overlay)


@cache
def with_snippet(snippet: str) -> str:
    """The YAML of an overlay with a snippet, which builds on production unless the snippet says on what."""
    with TemporaryDirectory() as folder:
        root = Path(os.path.relpath(ROOT, Path(folder).resolve()))
        written = yaml.safe_load(REMOTE.sub(lambda found: str(root / found[1]), snippet))
        overlay = {"namespace": "inkwell", "resources": [str(root / "k8s/overlays/production")]} | written
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return built(Path(folder))


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
    return tuple(yaml.load_all(text_of(overlay), Loader=yaml.CSafeLoader))


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
