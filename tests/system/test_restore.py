"""The commands for backup and restore in docs/operations.md, run on a stack under Compose."""

import re

import httpx
import pytest

from dev.backend import ROOT
from tests.support import canaries
from tests.support.accounts import sign_in, sign_up
from tests.support.harness import decided
from tests.system.deployment import Deployment

SECTION = (ROOT / "docs/operations.md").read_text().partition("## Backup and restore\n")[2].partition("\n## ")[0]
BACKUP, RESTORE, RESTORE_ANEW = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
TABLES = "select tablename, tableowner from pg_tables where schemaname = 'public'"
EXTENSIONS = "select extname from pg_extension where extname in ('pg_trgm', 'btree_gin')"

pytestmark = [pytest.mark.needs_docker, pytest.mark.long]


async def test_dump_is_restored_and_what_was_queued_is_applied_to_it(deployment: Deployment) -> None:
    client = deployment.client
    client.headers.update((await sign_up(client, "ada")).headers)
    kept = await deployment.create("kept", "first")
    owners = await deployment.sql(TABLES)
    await deployment.run(BACKUP)

    eve = await sign_up(client, "eve")
    lost = await deployment.create("lost", "second")
    assert (await client.patch(kept.headers["Location"], json={"title": "changed"})).is_success
    await deployment.run("docker compose stop worker")
    queued = await client.post("/notes/", json=canaries.NOTE, headers={"Prefer": "respond-async"})
    assert (lost.status_code, queued.status_code) == (201, 202)
    await deployment.run(RESTORE)

    assert (await client.get(kept.headers["Location"])).content == kept.content
    assert (await client.get(lost.headers["Location"])).status_code == 404
    assert (await decided(client, queued.headers["Location"]))["status"] == "applied"
    repeated = await deployment.create("kept", "first")
    assert (repeated.content, repeated.headers["Idempotent-Replayed"]) == (kept.content, "true")
    again = await deployment.create("lost", "second")
    assert (again.status_code, "Idempotent-Replayed" in again.headers) == (201, False)
    assert again.json()["id"] > lost.json()["id"]
    await assert_token_stays_invalid(client, eve.headers)
    await assert_all_is_restored(deployment, owners)


async def test_dump_is_restored_into_a_new_deployment(deployment: Deployment) -> None:
    client = deployment.client
    client.headers.update((await sign_up(client, "ada")).headers)
    kept = await deployment.create("kept", "first")
    owners = await deployment.sql(TABLES)
    await deployment.run(BACKUP)
    await deployment.run("docker compose down --volumes")
    await deployment.run(RESTORE_ANEW)

    client.headers["Authorization"] = f"Bearer {await sign_in(client, 'ada')}"
    assert (await client.get(kept.headers["Location"])).content == kept.content
    assert (await deployment.create("kept", "first")).headers["Idempotent-Replayed"] == "true"
    assert (await deployment.create("new", "second")).status_code == 201
    await assert_all_is_restored(deployment, owners)


async def assert_token_stays_invalid(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Checks that the token of a deleted user is invalid, even after another user has registered."""
    await sign_up(client, "mallory")
    assert (await client.get("/users/me", headers=headers)).status_code == 401
    assert (await client.get("/notes", headers=headers)).status_code == 401


async def assert_all_is_restored(deployment: Deployment, owners: list[str]) -> None:
    """Checks that owners, rights and schema are restored: the gateway cannot write, and the migrator can migrate."""
    assert await deployment.sql(TABLES) == owners
    assert await deployment.sql(EXTENSIONS) == ["btree_gin", "pg_trgm"]
    for service in ("gateway", "worker"):
        findings = await deployment.run(f"docker compose exec -T {service} python -m {service} doctor")
        assert "ok       role" in findings
    await deployment.run("docker compose run --rm migrate alembic check")
    with pytest.raises(AssertionError, match="permission denied for table notes"):
        await deployment.sql("set role inkwell_gateway; delete from notes")
