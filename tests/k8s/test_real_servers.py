"""What the operators hand on to Postgres and RabbitMQ, tried on real ones: parameters, configuration, rights, policies.

The images are those of the other tests, which may be of other patch releases than the manifests name.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from dev.containers import image
from tests.k8s.rules import quantity
from tests.support.harness import eventually
from tests.support.rendering import BUILDS, Object, find, objects_of

GIBIBYTE = 2**30
LOGS = 3
"""Quorum queues may have so many write-ahead logs in memory: one that is written, and two on their way to the disk."""

pytestmark = pytest.mark.needs_docker


def parameters_refused(parameters: dict[str, str]) -> str:
    """What Postgres says to parameters; an empty text if it takes them."""
    options = [f"-c{name}={value}" for name, value in {"config_file": "/dev/null", "data_directory": "/"}.items()]
    options += [f"-c{name}={value}" for name, value in parameters.items()]
    with running(image("POSTGRES_IMAGE"), ["postgres", "-C", "port", *options], entrypoint=[]) as container:
        ended = container.wait()["StatusCode"]
        return container.logs().decode() if ended else ""


@contextmanager
def running(tag: str, command: list[str], **options: Any) -> Iterator[Container]:
    """A container for the block."""
    engine = docker.from_env()
    container = engine.containers.run(tag, command, detach=True, **options)
    try:
        yield container
    finally:
        container.remove(force=True, v=True)
        engine.close()


def test_postgres_has_the_parameters_of_each_cluster() -> None:
    clusters = [each["spec"] for build in BUILDS for each in objects_of(build) if each["kind"] == "Cluster"]
    parameters = {tuple(each["postgresql"]["parameters"].items()) for each in clusters}

    assert {text for each in parameters if (text := parameters_refused(dict(each)))} == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [("shared_bufers", "512MB"), ("shared_buffers", "512 MiB"), ("max_connections", "many"), ("wal_keep_size", "-1")],
)
def test_postgres_knows_no_other_parameter_or_value(name: str, value: str) -> None:
    assert name in parameters_refused({name: value})


def configuration(cluster: Object, folder: Path) -> dict[str, dict[str, str]]:
    """RabbitMQ's configuration as its operator writes it, as a volume."""
    spec = cluster["spec"]
    memory = int(quantity(spec["resources"]["limits"]["memory"]))
    headroom = min(memory // 5, 2 * GIBIBYTE)
    text = f"total_memory_available_override_value = {memory - headroom}\n{spec['rabbitmq']['additionalConfig']}"
    folder.joinpath("operator.conf").write_text(text)
    return {str(folder / "operator.conf"): {"bind": "/etc/rabbitmq/conf.d/90-operator.conf", "mode": "ro"}}


@pytest.fixture(scope="module")
async def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Container]:
    """A RabbitMQ with the configuration of the production overlay."""
    volumes = configuration(find("production", "RabbitmqCluster", "rabbitmq"), tmp_path_factory.mktemp("rabbitmq"))
    with running(image("RABBITMQ_IMAGE"), ["rabbitmq-server"], volumes=volumes) as container:
        await eventually(lambda: is_up(container), within_seconds=120, every_seconds=1)
        yield container


async def is_up(container: Container) -> bool:
    container.reload()
    assert container.status == "running", container.logs().decode()[-3000:]
    return (await asyncio.to_thread(rabbitmqctl, container, "await_startup"))[0] == 0


def rabbitmqctl(container: Container, *arguments: str) -> tuple[int, str]:
    """The exit code of the broker's tool, and what it has printed."""
    result = container.exec_run(["rabbitmqctl", "--quiet", *arguments])
    assert isinstance(result.output, bytes)
    return int(result.exit_code or 0), result.output.decode()


async def test_rabbitmq_starts_with_the_configuration_and_has_memory_for_three_logs(rabbitmq: Container) -> None:
    code, status = rabbitmqctl(rabbitmq, "status", "--formatter", "json")
    _, log = rabbitmqctl(rabbitmq, "eval", "element(2, application:get_env(ra, wal_max_size_bytes)).")

    assert code == 0, status
    assert LOGS * int(log) < json.loads(status)["vm_memory_high_watermark_limit"]


@pytest.mark.parametrize("line", ["vm_memory_hi_watermark.relative = 0.6", "vm_memory_high_watermark.relative = much"])
def test_rabbitmq_does_not_start_with_another_line(tmp_path: Path, line: str) -> None:
    cluster = {"spec": {"resources": {"limits": {"memory": "1Gi"}}, "rabbitmq": {"additionalConfig": line}}}
    with running(image("RABBITMQ_IMAGE"), ["rabbitmq-server"], volumes=configuration(cluster, tmp_path)) as container:
        ended = container.wait(timeout=120)["StatusCode"]

        assert ended != 0
        assert line.split(" ", maxsplit=1)[0] in container.logs().decode()


def policy_refused(rabbitmq: Container, spec: Object) -> str:
    options = ["--priority", str(spec.get("priority", 0)), "--apply-to", spec.get("applyTo", "all")]
    definition = json.dumps(spec["definition"])
    code, printed = rabbitmqctl(rabbitmq, "set_policy", *options, spec["name"], spec["pattern"], definition)
    return printed if code else ""


@pytest.mark.parametrize("kind", ["Policy", "Permission", "User"])
async def test_rabbitmq_takes_the_objects_of_the_topology_operator(rabbitmq: Container, kind: str) -> None:
    specs = [each["spec"] for each in objects_of("production") if each["kind"] == kind]
    for spec in specs:
        if kind == "Policy":
            assert policy_refused(rabbitmq, spec) == ""
        elif kind == "Permission":
            rabbitmqctl(rabbitmq, "add_vhost", spec["vhost"])
            assert rights_refused(rabbitmq, spec) == ""
        else:
            assert rabbitmqctl(rabbitmq, "set_user_tags", "guest", *spec.get("tags", []))[0] == 0

    assert specs


@pytest.mark.parametrize(
    "change",
    [
        {"definition": {"queue-leader-locater": "balanced"}},
        {"definition": {"queue-leader-locator": "balancd"}},
        {"definition": {"max-length": "many"}},
        {"applyTo": "quorum"},
        {"priority": "high"},
    ],
    ids=str,
)
async def test_rabbitmq_refuses_a_policy_with_a_mistake(rabbitmq: Container, change: Object) -> None:
    [spec] = [each["spec"] for each in objects_of("production") if each["kind"] == "Policy"]

    assert policy_refused(rabbitmq, spec | change)


def rights_refused(rabbitmq: Container, spec: Object) -> str:
    rights = [spec["permissions"][each] for each in ("configure", "write", "read")]
    code, printed = rabbitmqctl(rabbitmq, "set_permissions", "--vhost", spec["vhost"], "guest", *rights)
    return printed if code else ""


async def test_rabbitmq_refuses_rights_that_are_no_regular_expression(rabbitmq: Container) -> None:
    spec = {"vhost": "/", "permissions": {"configure": "^$", "write": "^(inkwell$", "read": "^$"}}

    assert rights_refused(rabbitmq, spec)
