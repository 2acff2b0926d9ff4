"""Requests that the OpenAPI document allows are answered as declared, others are rejected, and none is a 5xx."""

import asyncio
import os
import re
import sys
from pathlib import Path

from dev.backend import ROOT
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import sign_up
from tests.support.canaries import NOTE
from worker.settings import WorkerSettings

EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "5")
"""The number of cases for each operation and phase."""
CASES = int(os.environ.get("FUZZ_CASES", "500"))
"""The least number of cases."""
PLENTY = "1000000/minute"
LIMITS = {"registration_limit": PLENTY, "login_limit": PLENTY, "login_address_limit": PLENTY}


async def test_no_case_fails_a_check_of_schemathesis(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = password_settings.model_copy(update=LIMITS)
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        person = await sign_up(client, "fuzz")
        accepted = await client.post("/notes", json=NOTE, headers=person.headers | {"Prefer": "respond-async"})
        command = accepted.headers["location"].rpartition("/")[2]
        environment = {"AUTHORIZATION": person.headers["Authorization"], "COMMAND": command}
        code, output = await schemathesis(f"{client.base_url}/openapi.json", environment)

    assert code == 0, output
    [cases] = re.findall(r"(\d+) generated", output)
    sys.stdout.write(f"{cases} cases, none of which failed\n")
    assert int(cases) >= CASES


async def schemathesis(document: str, environment: dict[str, str]) -> tuple[int | None, str]:
    """The exit code and the output."""
    program = Path(sys.executable).parent / "schemathesis"
    config = Path(__file__).parent / "schemathesis.toml"
    process = await asyncio.create_subprocess_exec(
        *(program, "--config-file", config, "run", document, "--max-examples", EXAMPLES),
        env=os.environ | environment,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()
