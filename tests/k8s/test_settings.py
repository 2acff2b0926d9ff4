"""The services start with exactly what the manifests give them, and what the manifests say twice agrees."""

import re
import tomllib

import pytest

from dev.backend import ROOT
from gateway.settings import GatewaySettings
from shared.settings import DatabaseSettings, MigrationSettings
from tests.k8s.environment import environment
from tests.k8s.rendering import OVERLAYS, Object, containers_of, find, objects_of, pods_of, text_of
from worker.settings import WorkerSettings

SETTINGS: dict[str, type[DatabaseSettings]] = {
    "Deployment gateway, wait-for-schema": DatabaseSettings,
    "Deployment gateway, gateway": GatewaySettings,
    "Deployment worker, wait-for-schema": DatabaseSettings,
    "Deployment worker, worker": WorkerSettings,
    "Job migrate, wait-for-postgres": DatabaseSettings,
    "Job migrate, migrate": MigrationSettings,
}
ENVIRONMENTS = {"dev": "development", "production": "production"}


def container_of(overlay: str, called: str) -> Object:
    """The container, by its maker without a version, and its name."""
    [found] = [
        container
        for maker, pod in pods_of(overlay)
        for container in containers_of(pod)
        if f"{re.sub(r'-[0-9-]+$', '', maker)}, {container['name']}" == called
    ]
    return found


@pytest.mark.parametrize("called", SETTINGS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_accepts_the_settings_that_it_is_given(
    overlay: str, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in GatewaySettings.model_fields.keys() | WorkerSettings.model_fields:
        monkeypatch.delenv(f"INKWELL_{name.upper()}", raising=False)
    for name, value in environment(overlay, container_of(overlay, called)).items():
        monkeypatch.setenv(name, value)

    assert SETTINGS[called]().environment == ENVIRONMENTS[overlay]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_image_and_migration_are_of_this_version(overlay: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container_of(overlay, called)["image"].rpartition("/")[2] for called in SETTINGS}

    assert images == {f"inkwell:{version}"}
    assert find(overlay, "Job", f"migrate-{version.replace('.', '-')}")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_migration_refers_to_nothing_that_is_named_after_its_content(overlay: str) -> None:
    assert "envFrom" not in container_of(overlay, "Job migrate, migrate")


def test_upgrade_in_steps_leaves_the_gateways_out() -> None:
    assert "--selector 'inkwell/part!=gateway'" in (ROOT / "docs/kubernetes.md").read_text()
    deployments = [each["metadata"] for each in objects_of("production") if each["kind"] == "Deployment"]

    assert {each["name"]: each["labels"]["inkwell/part"] for each in deployments} == {
        "gateway": "gateway",
        "worker": "worker",
    }


def test_files_of_compose_are_in_the_overlays_as_they_are() -> None:
    maps = {re.sub(r"-[a-z0-9]{10}$", "", name): each for name, each in config_maps("dev") + config_maps("production")}

    for name, path in (
        ("postgres-roles", "dev/roles.sql"),
        ("rabbitmq-definitions", "dev/definitions.sh"),
        ("rabbitmq-definitions", "dev/rabbitmq.conf"),
        ("inkwell-dashboard", "observability/grafana/dashboards/inkwell.json"),
    ):
        assert maps[name][path.rpartition("/")[2]] == (ROOT / path).read_text()


def config_maps(overlay: str) -> list[tuple[str, dict[str, str]]]:
    return [(each["metadata"]["name"], each["data"]) for each in objects_of(overlay) if each["kind"] == "ConfigMap"]


def test_jobs_of_prometheus_have_the_names_that_they_have_under_compose() -> None:
    under_compose = set(re.findall(r"job_name: (\S+)", (ROOT / "observability/prometheus.yml").read_text()))
    monitors = [each["spec"] for each in objects_of("production") if each["kind"] == "PodMonitor"]
    rules = [rule for each in monitors for end in each["podMetricsEndpoints"] for rule in end["relabelings"]]

    # Under Compose nobody looks at Postgres.
    jobs = {rule["replacement"] for rule in rules if rule["targetLabel"] == "job"}
    assert jobs - {"postgres"} == under_compose & {"gateway", "worker", "rabbitmq", "rabbitmq-queues"}


def test_budgets_never_block_the_drain_of_a_node() -> None:
    budgets = {
        each["metadata"]["name"]: each["spec"]
        for each in objects_of("production")
        if each["kind"] == "PodDisruptionBudget"
    }

    assert {name: each["maxUnavailable"] for name, each in budgets.items()} == dict.fromkeys(budgets, 1)
    assert all(budgets[name]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for name in ("gateway", "worker"))
    assert "minAvailable" not in text_of("production")
