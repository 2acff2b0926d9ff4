"""What the OpenAPI document allows is answered as it declares, and what it forbids is refused; nothing is a 5xx."""

import asyncio
import os
import sys
from pathlib import Path

import httpx

from gateway.settings import GatewaySettings
from tests import harness
from tests.accounts import sign_up
from worker.settings import WorkerSettings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
"""Cases for each operation, in each of three phases."""
CONFIG = Path(__file__).parent / "schemathesis.toml"
PLENTY = "1000000/minute"
LIMITS = {"registration_limit": PLENTY, "login_limit": PLENTY, "login_address_limit": PLENTY}


async def test_no_case_fails_a_check_of_schemathesis(
    password_settings: GatewaySettings, worker_settings: WorkerSettings, tmp_path: Path
) -> None:
    settings = password_settings.model_copy(update=LIMITS)
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        person = await sign_up(client, "fuzz")
        arguments = ["--config-file", CONFIG, "run", f"{client.base_url}/openapi.json", "--max-examples", EXAMPLES]
        process = await asyncio.create_subprocess_exec(
            *map(str, [Path(sys.executable).parent / "schemathesis", *arguments]),
            env=os.environ | {"AUTHORIZATION": person.headers["Authorization"]},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()

    print(told.decode())
    assert process.returncode == 0
