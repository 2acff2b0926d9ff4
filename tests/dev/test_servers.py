"""Postgres and RabbitMQ are the same wherever Inkwell names them."""

import re

import pytest
import yaml

from dev.backend import ROOT
from dev.containers import IMAGES
from tests.k8s.rendering import containers_of, find, pods_of

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
POSTGRES, RABBITMQ = IMAGES["POSTGRES_IMAGE"], IMAGES["RABBITMQ_IMAGE"]
MAJOR = POSTGRES.removeprefix("postgres:")


def test_compose_the_tests_and_the_demonstration_run_the_same_servers() -> None:
    demonstration = {each["image"] for _, pod in pods_of("dev") for each in containers_of(pod)}

    assert (COMPOSE["postgres"]["image"], COMPOSE["rabbitmq"]["image"]) == (POSTGRES, RABBITMQ)
    assert {each for each in demonstration if not each.startswith("inkwell")} == {POSTGRES, RABBITMQ}


def test_operators_run_patch_releases_of_the_same_versions() -> None:
    postgres = find("production", "Cluster", "postgres")["spec"]["imageName"]
    rabbitmq = find("production", "RabbitmqCluster", "rabbitmq")["spec"]["image"]

    assert re.fullmatch(rf"ghcr\.io/cloudnative-pg/postgresql:{MAJOR}\.\d+-standard-trixie", postgres)
    assert re.fullmatch(RABBITMQ.replace("-", r"\.\d+-"), rabbitmq)


@pytest.mark.parametrize("place", ["compose", "demonstration"])
def test_data_of_postgres_are_below_the_volume_in_a_folder_of_their_version(place: str) -> None:
    if place == "compose":
        folder = COMPOSE["postgres"]["environment"]["PGDATA"]
        mounts = [each.split(":")[1] for each in COMPOSE["postgres"]["volumes"] if each.startswith("postgres:")]
    else:
        [container] = find("dev", "StatefulSet", "postgres")["spec"]["template"]["spec"]["containers"]
        folder = next(each["value"] for each in container["env"] if each["name"] == "PGDATA")
        mounts = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "data"]

    assert mounts == ["/var/lib/postgresql"]
    assert folder == f"/var/lib/postgresql/data-{MAJOR}"
