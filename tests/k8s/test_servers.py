"""Postgres and RabbitMQ in production: three nodes each, every commit on two disks, and least privilege."""

import json
import math
import os
import re
import subprocess
from urllib.parse import urlsplit

import pytest
import yaml

from dev.backend import ROOT
from dev.containers import IMAGES
from gateway.settings import GatewaySettings
from tests.faults.broker_nodes import CLUSTER_SETTINGS
from tests.k8s.parts import parts_of, services_of
from tests.k8s.passwords import secrets_of
from tests.k8s.references import references_of
from tests.k8s.rules import quantity
from tests.k8s.test_settings import PATHS, ROLES, settings_of
from tests.support.rendering import OVERLAYS, Object, fields_of, find, makers_of, objects_of
from worker.settings import WorkerSettings
from worker.subscriptions import prefetch_count

SYNCHRONOUS = {"method": "any", "number": 1, "dataDurability": "required", "failoverQuorum": True}
LOSE_COMMITS = {"fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names"}
SESSIONS = {"gateway": GatewaySettings.model_fields["read_connections"].default + 1, "worker": 4}
"""The most connections of each service to Postgres, as docs/capacity.md counts them."""
LABEL_OF_CLOUDNATIVE_PG = "cnpg.io/reload=true"
"""A label that makes Postgres adopt a changed password at once."""
LABEL_OF_TOPOLOGY_OPERATOR = "rabbitmq.com/topology-operator=true"
"""The operator refuses a User without it."""
RIGHTS = ("configure", "write", "read")


def spec_of(kind: str, name: str) -> Object:
    spec: Object = find("production", kind, name)["spec"]
    return spec


def specs_of(kind: str, overlay: str = "production") -> dict[str, Object]:
    return {each["metadata"]["name"]: each["spec"] for each in objects_of(overlay) if each["kind"] == kind}


def test_every_commit_is_on_two_disks_before_it_is_confirmed() -> None:
    cluster = spec_of("Cluster", "postgres")

    assert cluster["instances"] >= 3
    assert cluster["postgresql"]["synchronous"] == SYNCHRONOUS
    assert not cluster["postgresql"]["parameters"].keys() & LOSE_COMMITS


def test_sessions_of_all_services_fit_into_postgres_twice() -> None:
    most = {
        "gateway": spec_of("HorizontalPodAutoscaler", "gateway")["maxReplicas"],
        "worker": spec_of("ScaledObject", "worker")["maxReplicaCount"],
    }
    limit = spec_of("Cluster", "postgres")["postgresql"]["parameters"]["max_connections"]

    assert 2 * sum(most[service] * SESSIONS[service] for service in most) < int(limit)


def test_database_is_made_for_the_migrator_and_its_roles_may_only_log_in() -> None:
    cluster = spec_of("Cluster", "postgres")
    made = cluster["bootstrap"]["initdb"]

    assert (f"/{made['database']}", made["owner"]) == (PATHS["postgres"], ROLES["migrate"])
    assert made["secret"] == {"name": "postgres-migrator"}
    assert sorted(cluster["managed"]["roles"], key=lambda role: str(role["name"])) == [
        {"name": ROLES[service], "login": True, "passwordSecret": {"name": f"postgres-{service}"}} | bounds
        for service, bounds in (("gateway", {"connectionLimit": 125}), ("worker", {}))
    ]


def test_gateways_fit_into_their_roles_sessions_twice_and_leave_the_workers_theirs() -> None:
    [limit] = [role["connectionLimit"] for role in spec_of("Cluster", "postgres")["managed"]["roles"] if len(role) > 3]
    gateways = spec_of("HorizontalPodAutoscaler", "gateway")["maxReplicas"] * SESSIONS["gateway"]
    workers = spec_of("ScaledObject", "worker")["maxReplicaCount"] * SESSIONS["worker"]
    of_server = int(spec_of("Cluster", "postgres")["postgresql"]["parameters"]["max_connections"])

    assert 2 * gateways < limit < of_server - 2 * workers


def test_queues_are_on_three_nodes_of_which_a_minority_stops() -> None:
    cluster = spec_of("RabbitmqCluster", "rabbitmq")

    assert cluster["replicas"] >= 3
    assert quantity(cluster["persistence"]["storage"]) > 0
    settings = cluster["rabbitmq"]["additionalConfig"].splitlines()
    assert {"cluster_partition_handling = pause_minority", *CLUSTER_SETTINGS} <= {*settings}


def test_pods_of_rabbitmq_keep_to_the_restricted_profile() -> None:
    pod = spec_of("RabbitmqCluster", "rabbitmq")["override"]["statefulSet"]["spec"]["template"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in (*pod["initContainers"], *pod["containers"]):
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_users_of_the_broker_may_do_what_they_may_under_compose_and_keda_nothing() -> None:
    prefix = dict(settings_of("production", "Deployment worker, worker"))["queue_prefix"]
    names = "RABBITMQ_GATEWAY_PASSWORD", "RABBITMQ_WORKER_PASSWORD"
    printed = subprocess.run(
        ["/bin/sh", str(ROOT / "dev/definitions.sh")],
        check=True,
        capture_output=True,
        env=os.environ | dict.fromkeys(names, "x") | {"INKWELL_QUEUE_PREFIX": prefix},
    ).stdout
    vhosts = [{"name": "/"}, *({"name": each["name"]} for each in specs_of("Vhost").values())]
    nothing = {"user": "inkwell_keda", "vhost": "/"} | dict.fromkeys(RIGHTS, "^$")
    objects = [each["spec"] for each in objects_of("production") if each["kind"] == "Permission"]

    assert vhosts == json.loads(printed)["vhosts"]
    assert sorted(
        ({"user": each["user"], "vhost": each["vhost"]} | each["permissions"] for each in objects), key=str
    ) == sorted([*json.loads(printed)["permissions"], nothing], key=str)


def test_users_of_the_broker_have_their_own_passwords_and_no_tags_but_for_keda() -> None:
    users = specs_of("User")

    assert {name: user.get("tags", []) for name, user in users.items()} == {
        "gateway": [],
        "worker": [],
        "keda": ["monitoring"],
    }
    for name, user in users.items():
        assert user["importCredentialsSecret"] == {"name": f"rabbitmq-{name}"}
        assert secrets_of("production")[f"rabbitmq-{name}"]["username"] == f"inkwell_{name}"


def test_keda_asks_the_broker_as_its_own_user() -> None:
    secret = secrets_of("production")["rabbitmq-keda"]
    url = urlsplit(secret["host"])

    assert (url.username, url.password) == (secret["username"], secret["password"])
    assert services_of("production")[str(url.hostname).removesuffix(".inkwell.svc")] == "rabbitmq"


def test_no_worker_is_scaled_beyond_the_partitions_or_below_one() -> None:
    scaling = spec_of("ScaledObject", "worker")
    partitions = dict(settings_of("production", "Deployment worker, worker"))["partitions"]

    assert 1 <= scaling["minReplicaCount"] <= scaling["maxReplicaCount"] == partitions
    assert scaling.get("fallback", {}).get("replicas", 1) >= 1


def test_no_worker_is_added_for_messages_that_one_holds_while_it_keeps_up() -> None:
    [trigger] = spec_of("ScaledObject", "worker")["triggers"]
    worker = settings_of("production", "Deployment worker, worker")
    assert isinstance(worker, WorkerSettings)

    partitions = worker.partitions or 1
    assert int(trigger["metadata"]["value"]) > partitions * prefetch_count(worker, partitions)


@pytest.mark.parametrize(
    ("overlay", "parts"), [("dev", ("gateway", "worker")), ("production", ("gateway", "worker", "rabbitmq"))]
)
def test_a_drain_takes_one_of_each_and_is_never_blocked(overlay: str, parts: tuple[str, ...]) -> None:
    budgets = specs_of("PodDisruptionBudget", overlay)

    assert {name: each["maxUnavailable"] for name, each in budgets.items()} == dict.fromkeys(parts, 1)
    assert all(budgets[name]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for name in ("gateway", "worker"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_data_are_not_gone_with_their_pod(overlay: str) -> None:
    for maker in makers_of(overlay):
        claims = [each["metadata"]["name"] for each in maker["spec"].get("volumeClaimTemplates", [])]
        assert claims == (["data"] if maker["kind"] == "StatefulSet" else [])


@pytest.mark.parametrize(
    ("kind", "label"), [("Cluster", LABEL_OF_CLOUDNATIVE_PG), ("User", LABEL_OF_TOPOLOGY_OPERATOR)]
)
def test_documentation_labels_the_secrets_that_operators_read(kind: str, label: str) -> None:
    read = {
        target.name
        for owner, target in references_of("production")
        if owner.startswith(f"{kind} ") and target.kind == "Secret"
    }
    [labelled] = re.findall(rf"label secret (.+) {re.escape(label)}", (ROOT / "docs/kubernetes.md").read_text())

    assert read == set(labelled.split())


def test_nothing_of_production_may_share_a_zone_while_there_are_others() -> None:
    fields = [field for each in objects_of("production") for field in fields_of(each)]
    spreads = [each for name, value in fields if name == "topologySpreadConstraints" for each in value]
    over_zones = [each for each in spreads if each["topologyKey"] == "topology.kubernetes.io/zone"]

    assert len(over_zones) == len(("gateway", "worker", "postgres", "rabbitmq"))
    assert {(each["maxSkew"], each["whenUnsatisfiable"]) for each in over_zones} == {(1, "DoNotSchedule")}


def test_standby_that_is_away_does_not_fill_the_primarys_disk() -> None:
    cluster = spec_of("Cluster", "postgres")
    kept = int(cluster["postgresql"]["parameters"]["max_slot_wal_keep_size"].removesuffix("GB"))

    assert kept < int(cluster["walStorage"]["size"].removesuffix("Gi"))


def test_manifests_name_the_servers_that_compose_and_the_tests_run_on() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    production = [spec_of("Cluster", "postgres")["imageName"], spec_of("RabbitmqCluster", "rabbitmq")["image"]]
    dev = [
        find("dev", "StatefulSet", name)["spec"]["template"]["spec"]["containers"][0]["image"]
        for name in ("postgres", "rabbitmq")
    ]

    assert dev == [services[name]["image"] for name in ("postgres", "rabbitmq")] == [*IMAGES.values()]
    for whole, short in zip(production, dev, strict=True):
        assert whole.rpartition(":")[2].startswith(re.sub(r"-.*", "", short.rpartition(":")[2]) + ".")


def test_page_says_what_production_requests() -> None:
    requests = [
        (name, each["requests"]) for name, part in parts_of("production").items() for each in part.resources[-1:]
    ]
    replicas = {"gateway": 3, "worker": 2, "migrate": 1, "postgres": 3, "rabbitmq": 3}
    processors, memory = (
        sum(replicas[name] * quantity(each[kind]) for name, each in requests) for kind in ("cpu", "memory")
    )
    surge = [each for name, each in requests if name in ("gateway", "worker")]
    processors += sum(quantity(each["cpu"]) for each in surge)
    memory += sum(quantity(each["memory"]) for each in surge)

    page = " ".join((ROOT / "docs/kubernetes.md").read_text().split())
    assert f"some {math.ceil(processors)} processors and {math.ceil(memory / 2**30)} GiB of memory" in page


def test_single_rabbitmq_has_memory_for_three_logs() -> None:
    lines = (ROOT / "dev/rabbitmq.conf").read_text().splitlines()
    settings = dict(line.split(" = ") for line in lines if " = " in line and not line.startswith("#"))
    watermark = int(settings["vm_memory_high_watermark.absolute"].removesuffix("MiB")) * 2**20

    assert 3 * int(settings["raft.wal_max_size_bytes"]) < watermark
