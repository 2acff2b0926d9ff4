"""The services start with exactly the settings in the manifests, and repeated values agree."""

import os
import re
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

import pytest

from dev.backend import ROOT
from gateway.settings import GatewaySettings
from shared.settings import DatabaseSettings, MigrationSettings, SecretFiles, ServiceSettings, iter_secrets
from shared.topology import Topology
from tests.k8s.environment import environment, files_of
from tests.k8s.parts import services_of
from tests.k8s.passwords import secrets_of
from tests.support.rendering import OVERLAYS, Object, containers_of, find, objects_of, pods_of
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
IN_COMMON = {
    "environment",
    "database_url",
    "database_password",
    "broker_url",
    "broker_password",
    "queue_prefix",
    "metrics_host",
    "metrics_port",
}
GIVEN = {
    "Deployment gateway, gateway": IN_COMMON
    | {"signing_keys", "fingerprint_key", "host", "port", "drain_delay_seconds", "trusted_proxies"},
    "Deployment worker, worker": IN_COMMON | {"worker_health_host", "worker_health_port"},
}
"""All settings that the manifests set; others keep their defaults."""
OTHER_VARIABLES = {"PYTHON_CPU_COUNT"}
ROLES = {"gateway": "inkwell_gateway", "worker": "inkwell_worker", "migrate": "inkwell_migrator"}
PATHS = {"postgres": "/inkwell", "rabbitmq": "/"}
DRAIN = ("drain_delay_seconds", "drain_timeout_seconds", "publish_timeout_seconds")


def container_of(overlay: str, called: str) -> Object:
    """The container by its owner and its name, without a version."""
    [found] = [
        container
        for maker, pod in pods_of(overlay)
        for container in containers_of(pod)
        if f"{unversioned(maker)}, {container['name']}" == called
    ]
    return found


def unversioned(maker: str) -> str:
    """The kind and name of an object without the version in its name."""
    return re.sub(r"-[0-9-]+$", "", maker)


def settings_of(overlay: str, called: str) -> DatabaseSettings:
    """The settings that the container's program reads."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as secrets:
        for name in [name for name in os.environ if name.startswith("INKWELL_")]:
            patch.delenv(name)
        for name, value in environment(overlay, container_of(overlay, called)).items():
            patch.setenv(name, value)
        for name, text in secrets_in(overlay, called).items():
            Path(secrets, name).write_text(text)
        return SETTINGS[called](_secrets_dir=secrets)


def secrets_in(overlay: str, called: str) -> dict[str, str]:
    """The files that a container finds where its program looks for settings."""
    folder = str(SecretFiles.model_fields["secrets_dir"].default)
    [mounted] = [each["name"] for each in container_of(overlay, called)["volumeMounts"] if each["mountPath"] == folder]
    [volumes] = [pod["spec"]["volumes"] for maker, pod in pods_of(overlay) if called.startswith(unversioned(maker))]
    [volume] = [each for each in volumes if each["name"] == mounted]
    return files_of(overlay, volume)


@pytest.mark.parametrize("called", SETTINGS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_program_accepts_the_settings_that_it_is_given(overlay: str, called: str) -> None:
    assert settings_of(overlay, called).environment == ENVIRONMENTS[overlay]


def variables_of(*models: type[DatabaseSettings]) -> set[str]:
    return {f"INKWELL_{name.upper()}" for model in models for name in model.model_fields}


@pytest.mark.parametrize("called", SETTINGS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_is_a_setting_that_there_is(overlay: str, called: str) -> None:
    container = container_of(overlay, called)
    own = {each["name"] for each in container["env"]}

    assert own <= variables_of(SETTINGS[called]) | OTHER_VARIABLES
    assert environment(overlay, container).keys() - own <= variables_of(*SETTINGS.values()), "settings in common"


@pytest.mark.parametrize("called", GIVEN)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_is_given_nothing_but_these_settings(overlay: str, called: str) -> None:
    given = GIVEN[called] - {"trusted_proxies"} if overlay == "dev" else GIVEN[called] | {"partitions"}

    assert settings_of(overlay, called).model_fields_set == given


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_listens_where_its_pods_ports_are(overlay: str) -> None:
    for called in GIVEN:
        settings = settings_of(overlay, called)
        ports = {value for name, value in settings if name.endswith("port")}
        hosts = {value for name, value in settings if name.endswith("host")}

        assert {each["containerPort"] for each in container_of(overlay, called)["ports"]} == ports
        assert hosts == {"::"}


@pytest.mark.parametrize("called", GIVEN)
@pytest.mark.parametrize("overlay", [*OVERLAYS, "alb", "gce"])
def test_service_has_longer_to_stop_than_it_takes(overlay: str, called: str) -> None:
    settings = dict(settings_of(overlay, called))
    [pod] = [pod["spec"] for maker, pod in pods_of(overlay) if maker == called.partition(",")[0]]
    before = container_of(overlay, called).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)

    assert pod["terminationGracePeriodSeconds"] > before + sum(settings.get(name, 0) for name in DRAIN)


@pytest.mark.parametrize("called", SETTINGS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_secret_setting_has_a_value_of_a_secret_which_no_other_one_has(overlay: str, called: str) -> None:
    values = {value for held in secrets_of(overlay).values() for key, value in held.items() if key != "username"}
    used = [
        [value for value in values if value in text]
        for name, setting in settings_of(overlay, called)
        if not name.endswith("_url")  # which contains the password
        for text in iter_secrets(setting)
    ]

    assert [len(each) for each in used] == [1] * len(used)
    assert len({value for [value] in used}) == len(used)


@pytest.mark.parametrize("called", SETTINGS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_part_signs_in_as_itself_where_its_servers_are(overlay: str, called: str) -> None:
    role = ROLES[called.split()[1].rstrip(",")]
    settings = dict(settings_of(overlay, called))
    urls = [
        urlsplit(str(settings[name].get_secret_value())) for name in ("database_url", "broker_url") if name in settings
    ]

    for url in urls:
        server = services_of(overlay)[str(url.hostname)]
        secret = secrets_of(overlay)[f"{server}-{role.removeprefix('inkwell_')}"]
        assert (url.username, url.password, url.path) == (role, secret["password"], PATHS[server])
        assert secret["username"] == role


@pytest.mark.parametrize("called", SETTINGS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_container_is_called_after_the_program_that_it_runs(overlay: str, called: str) -> None:
    container = container_of(overlay, called)
    name = container["name"].replace("-", "_")

    assert " ".join(container["command"]) in (f"python -m {name}", f"python -m shared.{name}", "alembic upgrade head")


@pytest.mark.parametrize("called", SETTINGS)
def test_component_for_tls_has_the_services_check_certificates_with_the_authorities_that_they_have(called: str) -> None:
    container = container_of("tls", called)
    [volumes] = [pod["spec"]["volumes"] for maker, pod in pods_of("tls") if called.startswith(unversioned(maker))]
    [place] = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "authorities"]
    [sources] = [each["projected"]["sources"] for each in volumes if each["name"] == "authorities"]
    files = {item["path"] for source in sources for item in source["secret"]["items"]}
    [certificate] = [each["spec"] for each in objects_of("tls") if "dnsNames" in each.get("spec", {})]
    variables = environment("tls", container)

    database = parse_qs(urlsplit(variables["INKWELL_DATABASE_URL"]).query)
    assert database["sslmode"] == ["verify-full"]
    assert database["sslrootcert"][0].removeprefix(f"{place}/") in files
    if called.endswith((", gateway", ", worker")):
        broker = urlsplit(variables["INKWELL_BROKER_URL"])
        assert broker.scheme == "amqps"
        assert broker.hostname in certificate["dnsNames"]
        assert parse_qs(broker.query)["cafile"][0].removeprefix(f"{place}/") in files


@pytest.mark.parametrize(
    ("component", "idle_seconds", "longest_response"),
    [
        ("alb", 60, "idle_timeout.timeout_seconds=60"),
        ("gce", 600, "'timeoutSec': 40"),
        ("gateway-api", 3600, "'request': '40s'"),
        ("openshift", 30, "'haproxy.router.openshift.io/timeout': '40s'"),
    ],
)
def test_balancer_closes_idle_connections_first_and_waits_longer_than_35_seconds_for_a_response(
    component: str, idle_seconds: int, longest_response: str
) -> None:
    gateway = settings_of(component, "Deployment gateway, gateway")
    assert isinstance(gateway, GatewaySettings)

    assert gateway.keep_alive_seconds > idle_seconds
    assert longest_response in str(objects_of(component))


@pytest.mark.parametrize("overlay", ["production", "alb", "gce"])
def test_gateways_trust_those_that_may_reach_them_and_no_more(overlay: str) -> None:
    gateway = settings_of(overlay, "Deployment gateway, gateway")
    [policy] = [each["spec"] for each in objects_of(overlay) if each["metadata"]["name"] == "from-ingress"]
    networks = {peer["ipBlock"]["cidr"] for peer in policy["ingress"][0]["from"] if "ipBlock" in peer}
    assert isinstance(gateway, GatewaySettings)

    assert networks <= set(map(str, gateway.trusted_proxies))


def test_proxies_that_are_believed_are_none_of_the_internet() -> None:
    gateway = settings_of("production", "Deployment gateway, gateway")
    assert isinstance(gateway, GatewaySettings)

    assert not any(network.is_global for network in gateway.trusted_proxies)


def test_operators_look_for_the_queues_that_there_are() -> None:
    settings = settings_of("production", "Deployment worker, worker")
    assert isinstance(settings, ServiceSettings)
    topology = Topology.of(settings)
    [trigger] = find("production", "ScaledObject", "worker")["spec"]["triggers"]
    patterns = trigger["metadata"]["queueName"], find("production", "Policy", "commands")["spec"]["pattern"]

    for queue in map(topology.command_queue, range(settings.partitions or 0)):
        assert all(re.search(pattern, queue) for pattern in patterns)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_image_and_migration_are_of_this_version(overlay: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container_of(overlay, called)["image"].rpartition("/")[2] for called in SETTINGS}

    assert images == {f"inkwell:{version}"}
    assert find(overlay, "Job", f"migrate-{version.replace('.', '-')}")


@pytest.mark.parametrize("called", GIVEN)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_starts_anew_when_its_settings_change(overlay: str, called: str) -> None:
    [source] = container_of(overlay, called)["envFrom"]

    assert re.fullmatch(r"settings-[a-z0-9]{10}", source["configMapRef"]["name"]), "named after its content"


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
        ("postgres-roles", "dev/postgres.sh"),
        ("postgres-roles", "dev/room.sh"),
        ("postgres-roles", "dev/databases.sql"),
        ("rabbitmq-definitions", "dev/definitions.sh"),
        ("rabbitmq-definitions", "dev/rabbitmq.conf"),
        ("rabbitmq-definitions", "dev/rabbitmq-env.sh"),
        ("inkwell-dashboard", "observability/grafana/dashboards/inkwell.json"),
    ):
        assert maps[name][path.rpartition("/")[2]] == (ROOT / path).read_text()


def config_maps(overlay: str) -> list[tuple[str, dict[str, str]]]:
    return [(each["metadata"]["name"], each["data"]) for each in objects_of(overlay) if each["kind"] == "ConfigMap"]
