"""The overlays that docs/kubernetes.md describes have the described effect."""

import os
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from dev.backend import ROOT
from tests.k8s.custom import complaint_about, is_custom
from tests.support.rendering import Object, built, objects_of

PAGE = (ROOT / "docs/kubernetes.md").read_text()
ADDITIONS = [dedent(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
KUSTOMIZATION = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


def with_addition(folder: Path, addition: str) -> list[Object]:
    """The objects of an overlay that adds this to production."""
    production = os.path.relpath(ROOT / "k8s/overlays/production", folder)
    overlay: dict[str, Any] = KUSTOMIZATION | {"resources": [production]} | yaml.safe_load(addition)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return list(yaml.safe_load_all(built(folder)))


@pytest.mark.parametrize("addition", ADDITIONS, ids=range(len(ADDITIONS)))
def test_addition_to_an_overlay_is_one_that_the_operators_understand(tmp_path: Path, addition: str) -> None:
    objects = with_addition(tmp_path, addition)

    assert [each for each in map(complaint_about, filter(is_custom, objects)) if each] == []


def test_restored_postgres_is_bootstrapped_from_the_backup_and_archives_elsewhere(tmp_path: Path) -> None:
    [addition] = [each for each in ADDITIONS if "recovery" in each]
    [cluster] = [each["spec"] for each in with_addition(tmp_path, addition) if each["kind"] == "Cluster"]
    recovery, [before], [plugin] = cluster["bootstrap"]["recovery"], cluster["externalClusters"], cluster["plugins"]

    assert cluster["bootstrap"].keys() == {"recovery"}
    assert recovery.keys() == {"source", "database", "owner", "secret"}
    assert recovery["source"] == before["name"]
    assert plugin["parameters"]["barmanObjectName"] == before["plugin"]["parameters"]["barmanObjectName"]
    assert plugin["parameters"]["serverName"] != before["plugin"]["parameters"]["serverName"]


def test_restore_starts_neither_gateways_nor_workers_and_finds_the_migration() -> None:
    made = [each for each in objects_of("production") if each["kind"] in ("Deployment", "Job")]

    assert {each["metadata"]["labels"]["inkwell/part"] for each in made} == {"gateway", "worker", "migrate"}
    assert "--selector 'inkwell/part notin (gateway,worker)'" in PAGE
    assert "wait --for=condition=Complete job --selector inkwell/part=migrate" in PAGE
