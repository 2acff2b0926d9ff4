"""From previous versions of the servers to the current ones on their volumes: refused, or migrated as documented."""

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dev.backend import ROOT
from tests.support import canaries
from tests.support.accounts import sign_up
from tests.support.harness import decided
from tests.system.deployment import Deployment, deployed

DOCUMENTATION = (ROOT / "docs/upgrading.md").read_text()
TITLE = "From Postgres 17 to 18"
TAKE_OVER = re.findall(r"```bash\n(.*?)```", DOCUMENTATION.partition(f"## {TITLE}\n")[2], re.DOTALL)[0]
BEFORE = "docker-compose.yml:docker-compose.postgres-17.yml:rabbitmq-4.0.yml"
RABBITMQ_BEFORE = "services: { rabbitmq: { image: 'rabbitmq:4.0-management' } }"
START = "docker compose up -d --wait postgres"
SUMS = "find /var/lib/postgresql -type f -exec md5sum {} + | sort"
FILES = f"docker compose run --rm --no-deps postgres sh -c '{SUMS}'"

pytestmark = pytest.mark.needs_docker


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    (tmp_path / "rabbitmq-4.0.yml").write_text(RABBITMQ_BEFORE)
    async with deployed(tmp_path) as deployment:
        yield deployment


async def test_volume_of_postgres_17_is_refused_in_words_and_left_as_it_was(deployment: Deployment) -> None:
    await deployment.run(START, COMPOSE_FILE=BEFORE)
    await deployment.sql("create table kept as select 42 as answer")
    await deployment.run("docker compose down")
    before = await deployment.run(FILES)

    refused = await deployment.attempt(f"cd {ROOT} && {sys.executable} -m dev up", BACKEND="docker")  # `make up`

    assert refused.returncode != 0
    assert "holds the data of Postgres 17, in /var/lib/postgresql. They are untouched." in refused.stdout
    assert f'docs/upgrading.md, "{TITLE}"' in refused.stdout
    assert f"\n## {TITLE}\n" in DOCUMENTATION
    await deployment.run("docker compose down")
    assert await deployment.run(FILES) == before
    await deployment.run(START, COMPOSE_FILE=BEFORE)
    assert await deployment.sql("select answer from kept") == ["42"]


async def test_data_of_a_new_deployment_are_there_after_it_was_taken_down(deployment: Deployment) -> None:
    await deployment.run(START)
    await deployment.sql("create table kept as select 42 as answer")

    await deployment.run("docker compose down")
    await deployment.run(START)

    assert await deployment.sql("select answer from kept") == ["42"]


@pytest.mark.long
async def test_volume_of_postgres_18_is_not_made_anew_by_17(deployment: Deployment) -> None:
    await deployment.run(START)
    await deployment.sql("create table kept as select 42 as answer")
    await deployment.run("docker compose down")

    assert (await deployment.attempt(START, COMPOSE_FILE=BEFORE)).returncode != 0

    await deployment.run("docker compose down")
    await deployment.run(START)
    assert await deployment.sql("select answer from kept") == ["42"]


@pytest.mark.long
async def test_what_the_servers_of_before_hold_is_taken_over_as_documented(deployment: Deployment) -> None:
    client = deployment.client
    await deployment.up(COMPOSE_FILE=BEFORE)
    assert await versions(deployment) == ("17", "4.0")
    client.headers.update((await sign_up(client, "ada")).headers)
    kept = await deployment.create("kept", "first")
    await deployment.run("docker compose stop worker")
    queued = [await client.post("/notes/", json=canaries.NOTE, headers={"Prefer": "respond-async"}) for _ in range(3)]
    assert [each.status_code for each in queued] == [202] * 3
    assert (await deployment.attempt("docker compose up -d --wait")).returncode != 0

    await deployment.run(TAKE_OVER)

    assert await versions(deployment) == ("18", "4.3")
    assert (await client.get(kept.headers["Location"])).content == kept.content
    for each in queued:
        assert (await decided(client, each.headers["Location"]))["status"] == "applied"
    assert (await deployment.create("kept", "first")).headers["Idempotent-Replayed"] == "true"
    assert (await deployment.create("new", "second")).status_code == 201
    for service in ("gateway", "worker"):
        await deployment.run(f"docker compose exec -T {service} python -m {service} doctor")
    await deployment.run("docker compose run --rm migrate alembic check")
    await deployment.run("docker compose exec -T postgres rm -r /var/lib/postgresql/before-18")
    await deployment.run("docker compose exec -T rabbitmq rabbitmqctl enable_feature_flag all")


async def versions(deployment: Deployment) -> tuple[str, str]:
    """Postgres's major version, and RabbitMQ's with its minor one."""
    [postgres, *_] = await deployment.sql("show server_version_num")
    rabbitmq = await deployment.run("docker compose exec -T rabbitmq rabbitmqctl --quiet version")
    return postgres[:2], ".".join(rabbitmq.split(".")[:2])
