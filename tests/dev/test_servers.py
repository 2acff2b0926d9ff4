"""Postgres and RabbitMQ have the same versions everywhere."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dev.backend import ROOT
from dev.containers import IMAGES
from tests.support.rendering import containers_of, find, pods_of

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


def test_new_databases_have_the_same_stated_locale_which_knows_every_letter() -> None:
    [container] = find("dev", "StatefulSet", "postgres")["spec"]["template"]["spec"]["containers"]
    demonstration = next(each["value"] for each in container["env"] if each["name"] == "POSTGRES_INITDB_ARGS")
    made = find("production", "Cluster", "postgres")["spec"]["bootstrap"]["initdb"]

    assert COMPOSE["postgres"]["environment"]["POSTGRES_INITDB_ARGS"] == demonstration
    assert demonstration == "--encoding=UTF8 --locale-provider=builtin --locale=C.UTF-8"
    assert [made[name] for name in ("encoding", "localeProvider", "locale", "builtinLocale")] == [
        *("UTF8", "builtin", "C.UTF-8", "C.UTF-8")
    ]


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


@pytest.mark.needs_docker
@pytest.mark.parametrize(
    ("folder", "is_started"),
    [
        (".", False),  # Compose's volume for 17, mounted one level higher than before
        ("data", False),  # or mounted at the same place
        ("pgdata", False),  # the volume of the demonstration on Kubernetes
        ("17/docker", False),  # the data folder of the official image
        ("data-17", False),
        ("before-18", True),  # set aside by an operator after the migration
        ("data-18", True),  # of this version
    ],
)
def test_postgres_is_started_unless_there_are_only_the_data_of_another_version(
    folder: str, is_started: object, tmp_path: Path
) -> None:
    (tmp_path / "volume" / folder).mkdir(parents=True)
    (tmp_path / "volume" / folder / "PG_VERSION").write_text("17\n")
    (tmp_path / "entrypoint.sh").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "entrypoint.sh").chmod(0o755)
    mounts = {
        tmp_path / "volume": "/var/lib/postgresql",
        tmp_path / "entrypoint.sh": "/usr/local/bin/docker-entrypoint.sh",
        ROOT / "dev/postgres.sh": "/postgres.sh",
        ROOT / "dev/room.sh": "/room.sh",
    }
    options = [f"--volume={here}:{there}" for here, there in mounts.items()]
    variables = [f"--env=PGDATA=/var/lib/postgresql/data-{MAJOR}", f"--env=PG_MAJOR={MAJOR}"]
    command = ["docker", "run", "--rm", "--entrypoint=sh", *options, *variables, POSTGRES, "/postgres.sh"]

    ended = subprocess.run(command, check=False, capture_output=True, text=True)

    assert ((ended.returncode, ended.stdout) == (0, "started\n")) is is_started
    assert ("holds the data of Postgres 17" in ended.stderr) is not is_started
