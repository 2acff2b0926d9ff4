"""The parts of an overlay on docs/kubernetes.md have the described effect, and so has each line of them."""

import re
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.backend import ROOT
from shared import __version__
from tests.support.rendering import (
    COMPONENTS,
    PAGE,
    SNIPPETS,
    Object,
    built,
    find,
    objects_of,
    text_of,
    with_snippet,
)

OF_PAGE = [name for name in SNIPPETS if name not in COMPONENTS]


def less(snippet: str) -> Iterator[tuple[str, str]]:
    """The snippet without one entry of a list, or one operation of a patch, each time another, and what that is."""
    whole = yaml.safe_load(snippet)
    for field, entries in whole.items():
        if field in ("namespace", "resources"):
            continue
        for number, entry in enumerate(entries):
            operations = yaml.safe_load(entry["patch"]) if "patch" in entry else []
            for removed in range(len(operations)) if isinstance(operations, list) and len(operations) > 1 else [None]:
                rest: dict[str, Any] = deepcopy(whole)
                if removed is None:
                    del rest[field][number]
                else:
                    rest[field][number]["patch"] = yaml.safe_dump(
                        [each for index, each in enumerate(operations) if index != removed]
                    )
                yield f"{entry}, operation {removed}", yaml.safe_dump(rest)


@pytest.mark.parametrize("snippet", OF_PAGE)
def test_each_line_of_a_snippet_has_an_effect(snippet: str) -> None:
    assert [what for what, rest in less(SNIPPETS[snippet]) if with_snippet(rest) == text_of(snippet)] == []


def test_page_has_each_component() -> None:
    folders = {path.parent.name for path in (ROOT / "k8s/components").glob("*/kustomization.yaml")}

    assert {name for name in folders if f"k8s/components/{name}`" not in PAGE and f"`{name}`" not in PAGE} == set()
    assert {*COMPONENTS} <= folders


def test_overlay_builds_on_a_release_in_a_repository_and_gets_the_image_of_its_registry(tmp_path: Path) -> None:
    repository, overlay = tmp_path / "inkwell.git", tmp_path / "overlay"
    repository.mkdir()
    overlay.mkdir()
    for command in (
        "git init --quiet .",
        f"git --work-tree={ROOT} add k8s dev observability",
        "git -c user.name=x -c user.email=x@example.com commit --quiet --message=x",
        f"git tag v{__version__}",
        "git reset --hard --quiet",
    ):
        subprocess.run(command.split(), check=True, cwd=repository, capture_output=True)
    address = f"git::file://{repository}//"
    [snippet] = [text for text in SNIPPETS.values() if "newName" in text]
    (overlay / "kustomization.yaml").write_text(snippet.replace("https://git.example.com/inkwell.git//", address))

    objects = list(yaml.safe_load_all(built(overlay)))

    assert len(objects) > len(objects_of("production"))
    assert images_of(objects) == {f"registry.example.com/inkwell:{__version__}"}


def test_page_names_this_release() -> None:
    named = re.findall(r"\?ref=v([\d.]+)|newTag: ([\d.]+)|inkwell:([\d.]+\d)", PAGE)

    assert {version for each in named for version in each if version} == {__version__}


def images_of(objects: list[Object]) -> set[str]:
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] in ("Deployment", "Job")]
    return {container["image"] for pod in pods for container in (*pod["initContainers"], *pod["containers"])}


def test_image_is_built_for_several_processors_and_pushed() -> None:
    command = ["make", "--dry-run", "image", "REGISTRY=registry.example.com"]
    printed = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout

    assert f"--platform linux/amd64,linux/arm64 --push --tag registry.example.com/inkwell:{__version__}" in printed
    assert "make image REGISTRY=registry.example.com" in PAGE


def test_restored_postgres_is_bootstrapped_from_the_backup_and_archives_elsewhere() -> None:
    [snippet] = [name for name in OF_PAGE if "recovery" in SNIPPETS[name]]
    cluster = find(snippet, "Cluster", "postgres")["spec"]
    recovery, [before], [plugin] = cluster["bootstrap"]["recovery"], cluster["externalClusters"], cluster["plugins"]
    [archived] = find("backups", "Cluster", "postgres")["spec"]["plugins"]

    assert cluster["bootstrap"].keys() == {"recovery"}
    assert recovery.keys() == {"source", "database", "owner", "secret"}
    assert recovery["source"] == before["name"]
    assert before["plugin"] == {each: archived[each] for each in ("name", "parameters")}
    assert plugin["parameters"]["barmanObjectName"] == before["plugin"]["parameters"]["barmanObjectName"]
    assert plugin["parameters"]["serverName"] != before["plugin"]["parameters"]["serverName"]


def test_backups_are_made_of_the_cluster_that_archives_by_the_plugin_that_it_has() -> None:
    backup = find("backups", "ScheduledBackup", "postgres")["spec"]
    cluster = find("backups", "Cluster", backup["cluster"]["name"])["spec"]

    assert [plugin["name"] for plugin in cluster["plugins"]] == [backup["pluginConfiguration"]["name"]]
    assert cluster["plugins"][0]["isWALArchiver"] is True


def test_restore_starts_neither_gateways_nor_workers_and_finds_the_migration() -> None:
    made = [each for each in objects_of("production") if each["kind"] in ("Deployment", "Job")]

    assert {each["metadata"]["labels"]["inkwell/part"] for each in made} == {"gateway", "worker", "migrate"}
    assert "--selector 'inkwell/part notin (gateway,worker)'" in PAGE
    assert "wait --for=condition=Complete job --selector inkwell/part=migrate" in PAGE


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [("argo-cd", "argocd.argoproj.io/hook", "Sync"), ("flux", "kustomize.toolkit.fluxcd.io/force", "enabled")],
)
def test_migration_is_made_anew_and_stays(component: str, key: str, value: str) -> None:
    [job] = [each for each in objects_of(component) if each["kind"] == "Job"]
    [settings] = [each for each in objects_of(component) if each["metadata"]["name"].startswith("settings-")]

    assert job["metadata"]["annotations"][key] == value
    assert "ttlSecondsAfterFinished" not in job["spec"]
    assert settings["metadata"]["annotations"] in (
        {"argocd.argoproj.io/sync-options": "Prune=false"},
        {"kustomize.toolkit.fluxcd.io/prune": "disabled"},
    )
