"""The fault that lets a worker prune outcomes in the middle of everything: none of them is old enough."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.cluster import Cluster
    from tests.faults.nemesis import Nemesis

PRUNE = """
import asyncio
from datetime import timedelta
from shared.database import connect
from shared.settings import load_settings
from worker.housekeeping import PRUNE_VERSIONS, prune
from worker.settings import WorkerSettings

async def prune_all():
    settings = load_settings(WorkerSettings)
    session = await connect(settings.database_url, "nemesis")
    retention = timedelta(days=settings.command_retention_days)
    await prune(session, retention, PRUNE_VERSIONS)
    await prune(session, retention)
    await session.close()

asyncio.run(prune_all())
"""


async def outcomes_are_pruned(nemesis: "Nemesis", cluster: "Cluster[Any]") -> str:
    """Prunes outcomes and versions as a worker does once a minute, with the worker's own code."""
    worker = cluster.workers[0].process
    environment = worker.environment | {"INKWELL_DATABASE_URL": cluster.url_of("worker")}
    async with cluster.servers.postgres_lock:
        command = (sys.executable, "-c", PRUNE)
        process = await asyncio.create_subprocess_exec(*command, cwd=worker.folder, env=os.environ | environment)
        if code := await process.wait():
            nemesis.complain(f"I9: pruning ended with exit code {code}")
    return "postgres"
