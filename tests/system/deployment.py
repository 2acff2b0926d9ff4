"""Inkwell under Compose, as `docker compose up` starts it."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx

from dev.backend import ROOT
from tests.support import canaries
from tests.support.proxy import free_port


@dataclass
class Deployment:
    """A Compose project with its own name, port and folder, which links to the files of the checkout."""

    environment: dict[str, str]
    folder: Path
    client: httpx.AsyncClient

    async def up(self, **environment: str) -> None:
        """Builds the image from the checkout and starts everything."""
        await self.run(f"docker compose --project-directory {ROOT} --file {ROOT}/docker-compose.yml build")
        await self.run("docker compose up -d --wait", **environment)

    async def run(self, script: str, **environment: str) -> str:
        """Runs the lines in a shell in the folder, stopping at the first that fails; returns their output."""
        ended = await self.attempt(script, **environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    async def attempt(self, script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """As `run`, but may fail."""
        command = ["bash", "-euc", script]
        given = os.environ | self.environment | environment
        return await asyncio.to_thread(
            subprocess.run, command, env=given, cwd=self.folder, check=False, capture_output=True, text=True
        )

    async def sql(self, statement: str) -> list[str]:
        """The rows that an administrator gets, as text."""
        psql = "docker compose exec -T postgres psql --username=inkwell --no-align --tuples-only --command"
        return sorted((await self.run(f'{psql} "{statement}"')).split())

    async def create(self, title: str, key: str) -> httpx.Response:
        return await self.client.post(
            "/notes/", json=canaries.NOTE | {"title": title}, headers={"Idempotency-Key": key}
        )


@asynccontextmanager
async def deployed(folder: Path) -> AsyncIterator[Deployment]:
    """A deployment that is not started yet, removed after the block."""
    for each in ROOT.iterdir():
        if not each.name.startswith("."):
            (folder / each.name).symlink_to(each)
    port = free_port()
    environment = {"COMPOSE_PROJECT_NAME": f"inkwell-test-{uuid4().hex[:8]}", "INKWELL_PORT": str(port)}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        deployment = Deployment(environment, folder, client)
        try:
            yield deployment
        finally:
            await deployment.run("docker compose down --volumes --timeout=5")
