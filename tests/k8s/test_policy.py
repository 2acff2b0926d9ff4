"""What a platform team asks of every pod, container, image and setting, whoever writes the manifests."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from dev.backend import ROOT
from gateway.settings import GatewaySettings
from shared.settings import DatabaseSettings, MigrationSettings
from tests.k8s.environment import environment
from tests.k8s.rendering import OVERLAYS, Object, containers_of, find, objects_of, pods_of
from worker.settings import WorkerSettings

PREFIX = "INKWELL_"
PROBES = {"startupProbe", "livenessProbe", "readinessProbe"}
ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
ALLOWED_VOLUMES |= {"secret"}
SERVICES: dict[str, type[DatabaseSettings]] = {
    "gateway": GatewaySettings,
    "worker": WorkerSettings,
    "migrate": MigrationSettings,
}
POD_CASES = [pytest.param(pod, id=f"{overlay}: {name}") for overlay in OVERLAYS for name, pod in pods_of(overlay)]
CONTAINERS = [
    pytest.param(container, id=f"{overlay}: {name}, {container['name']}")
    for overlay in OVERLAYS
    for name, pod in pods_of(overlay)
    for container in containers_of(pod)
]


@pytest.mark.parametrize("pod", POD_CASES)
def test_pod_keeps_to_the_restricted_profile(pod: Object) -> None:
    spec = pod["spec"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert {kind for volume in spec.get("volumes", []) for kind in volume.keys() - {"name"}} <= ALLOWED_VOLUMES


@pytest.mark.parametrize("pod", POD_CASES)
def test_pod_has_no_token_and_an_account_of_its_own(pod: Object) -> None:
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["serviceAccountName"] not in ("", "default")


@pytest.mark.parametrize("container", CONTAINERS)
def test_container_keeps_to_the_restricted_profile(container: Object) -> None:
    context = container["securityContext"]

    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"] is True
    assert not context.keys() & {"privileged", "runAsUser", "seccompProfile", "procMount"}
    assert not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("container", CONTAINERS)
def test_container_says_what_it_needs_and_what_it_may_have(container: Object) -> None:
    for kind in ("requests", "limits"):
        assert container["resources"][kind].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("container", CONTAINERS)
def test_image_has_a_version(container: Object) -> None:
    tag = container["image"].rpartition("/")[2].partition(":")[2]

    assert tag
    assert tag != "latest"


@pytest.mark.parametrize("pod", POD_CASES)
def test_containers_that_serve_are_asked_whether_they_do(pod: Object) -> None:
    ends = pod["spec"].get("restartPolicy") == "Never"
    for container in pod["spec"]["containers"]:
        assert (container.keys() & PROBES) == (set() if ends else PROBES)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", ["gateway", "worker"])
def test_service_has_longer_to_stop_than_it_takes(overlay: str, service: str) -> None:
    spec = find(overlay, "Deployment", service)["spec"]["template"]["spec"]
    [container] = spec["containers"]
    settings = environment(overlay, container)
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    delay = float(settings.get("INKWELL_DRAIN_DELAY_SECONDS", "0"))
    drain, confirms = (GatewaySettings.model_fields[f"{each}_timeout_seconds"].default for each in ("drain", "publish"))

    assert spec["terminationGracePeriodSeconds"] > before + delay + drain + confirms


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("kind", "service"), [("Deployment", "gateway"), ("Deployment", "worker"), ("Job", "migrate")])
def test_every_setting_exists_and_every_required_one_is_there(overlay: str, kind: str, service: str) -> None:
    known = {PREFIX + name.upper(): field for name, field in SERVICES[service].model_fields.items()}
    in_common = {PREFIX + name.upper() for model in SERVICES.values() for name in model.model_fields}
    [pod] = [pod for name, pod in pods_of(overlay) if name.startswith(f"{kind} {service}")]
    [container] = pod["spec"]["containers"]
    given = {name for name in environment(overlay, container) if name.startswith(PREFIX)}
    own = {each["name"] for each in container["env"] if each["name"].startswith(PREFIX)}

    assert own <= known.keys()
    assert given <= in_common
    assert {name for name, field in known.items() if field.is_required()} <= given


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_refer_to_is_there(overlay: str) -> None:
    there = {(each["kind"], each["metadata"]["name"]) for each in objects_of(overlay)}
    named = {each for _, pod in pods_of(overlay) for each in referred_to(pod)}
    secrets = {name for kind, name in named if kind == "Secret"}
    documented = set(re.findall(r"create secret generic (\S+)", (ROOT / "docs/kubernetes.md").read_text()))

    assert {each for each in named if each[0] != "Secret"} <= there
    assert secrets <= {name for kind, name in there if kind == "Secret"} or secrets <= documented


def referred_to(pod: Object) -> Iterator[tuple[str, str]]:
    """Accounts, settings and secrets by name."""
    yield "ServiceAccount", pod["spec"]["serviceAccountName"]
    for volume in pod["spec"].get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
    for container in containers_of(pod):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"]
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                yield "Secret", variable["valueFrom"]["secretKeyRef"]["name"]


def test_production_brings_no_secret_along() -> None:
    assert not [each for each in objects_of("production") if each["kind"] == "Secret"]
    assert "development-only" not in str(objects_of("production"))


def test_no_worker_is_scaled_beyond_the_partitions_or_below_one() -> None:
    scaling = find("production", "ScaledObject", "worker")["spec"]
    [settings] = [each["data"] for each in objects_of("production") if each["metadata"]["name"].startswith("settings-")]

    assert 1 <= scaling["minReplicaCount"] <= scaling["maxReplicaCount"] == int(settings["INKWELL_PARTITIONS"])


def test_users_of_the_broker_may_do_what_they_may_under_compose() -> None:
    passwords = {"RABBITMQ_GATEWAY_PASSWORD": "x", "RABBITMQ_WORKER_PASSWORD": "x"}
    script = ["/bin/sh", str(ROOT / "dev/definitions.sh")]
    printed = subprocess.run(script, check=True, capture_output=True, env=os.environ | passwords).stdout
    of_compose = {each["user"]: permissions_of(each) for each in json.loads(printed)["permissions"]}
    objects = [each["spec"] for each in objects_of("production") if each["kind"] == "Permission"]

    assert {each["user"]: each["permissions"] for each in objects}.items() >= of_compose.items()


def permissions_of(user: Object) -> Object:
    """What a user may do, as the operator's objects say it."""
    return {right: user[right] for right in ("configure", "write", "read")}


LABEL_OF_CLOUDNATIVE_PG = "cnpg.io/reload=true"
"""With it a changed password is Postgres's at once."""
LABEL_OF_TOPOLOGY_OPERATOR = "rabbitmq.com/topology-operator=true"
"""Without it a User is refused."""


@pytest.mark.parametrize(
    ("kinds", "label"),
    [({"Cluster"}, LABEL_OF_CLOUDNATIVE_PG), ({"User"}, LABEL_OF_TOPOLOGY_OPERATOR)],
)
def test_documentation_labels_the_secrets_that_operators_read(kinds: set[str], label: str) -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    read = {name for each in objects_of("production") if each["kind"] in kinds for name in secrets_of(each["spec"])}
    [labelled] = re.findall(rf"label secret (.+) {re.escape(label)}", page)

    assert read == set(labelled.split())
    assert read <= set(re.findall(r"create secret generic (\S+)", page))


def secrets_of(value: Any) -> Iterator[str]:
    """The Secrets that an operator's object names, wherever it does."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(inner, dict) and str(key).lower().endswith("secret"):
            yield inner["name"]
        else:
            yield from secrets_of(inner)


def test_nothing_of_production_may_share_a_zone_while_there_are_others() -> None:
    spreads = [each for spec in objects_of("production") for each in spreads_of(spec)]
    over_zones = [each for each in spreads if each["topologyKey"] == "topology.kubernetes.io/zone"]

    assert len(over_zones) == len(("gateway", "worker", "postgres", "rabbitmq"))
    assert {(each["maxSkew"], each["whenUnsatisfiable"]) for each in over_zones} == {(1, "DoNotSchedule")}


def spreads_of(value: Any) -> Iterator[Object]:
    """The spreads that an object asks for, wherever it does."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key == "topologySpreadConstraints":
            yield from inner
        else:
            yield from spreads_of(inner)


def test_standby_that_is_away_does_not_fill_the_primarys_disk() -> None:
    cluster = find("production", "Cluster", "postgres")["spec"]
    kept = int(cluster["postgresql"]["parameters"]["max_slot_wal_keep_size"].removesuffix("GB"))

    assert kept < int(cluster["walStorage"]["size"].removesuffix("Gi"))
