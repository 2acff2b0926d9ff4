"""The load generators: connections that are kept busy, each with one request at a time.

wrk costs least; h2load also records when each response came.
"""

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from bench.contenders import Contender, authorization
from bench.scenarios import Scenario

SCRIPT = Path(__file__).with_name("load.lua")
NOTE = Path(__file__).with_name("note.json")
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}
RESPONSE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Responses:
    """The results of wrk."""

    requests: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    refused: int
    """Responses with status 400 and above."""
    broken: int
    """Failed connections and missing responses."""

    @property
    def good(self) -> int:
        """The number of expected responses."""
        return self.requests - self.refused


def require_tools() -> None:
    """Exit with a message if a load generator is missing."""
    for tool, package in PACKAGES.items():
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is missing; on Debian and Ubuntu: apt-get install {package}")


async def run_wrk(to: Contender, scenario: Scenario, owners: int, connections: int, seconds: float) -> Responses:
    """Keep the connections busy for this long."""
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={RESPONSE_SECONDS}s", f"-s{SCRIPT}"]
    arguments = [scenario.method, scenario.path, str(scenario.requests(owners)), str(NOTE), *to.access_tokens[:owners]]
    output = await run("wrk", *options, *_options(_headers(to)), to.url, "--", *arguments)
    seen = json.loads(output.splitlines()[-1])
    return Responses(
        requests=seen["requests"],
        seconds=seen["microseconds"] / 1e6,
        p50_ms=seen["p50"] / 1e3,
        p95_ms=seen["p95"] / 1e3,
        p99_ms=seen["p99"] / 1e3,
        refused=seen["refused"],
        broken=seen["broken"],
    )


@dataclass(frozen=True, slots=True)
class Response:
    """One response recorded by h2load."""

    time: float
    """The time of its completion, in seconds since the epoch."""
    status: int
    seconds: float


async def run_h2load(to: Contender, connections: int, extent: str) -> list[Response]:
    """Create notes for this many seconds (`-D20`), or this many of them (`-n5000`)."""
    with NamedTemporaryFile(suffix=".tsv") as log:
        options = ["--h1", f"-c{connections}", extent, f"-d{NOTE}", f"--log-file={log.name}"]
        headers = _headers(to) | authorization(*to.access_tokens[:1])
        await run("h2load", *options, *_options(headers), f"{to.url}/notes/")
        return [_response(*map(int, line.split())) for line in log]


def _response(started: int, status: int, lasted: int) -> Response:
    """Parse a line of h2load's log, in microseconds."""
    return Response((started + lasted) / 1e6, status, lasted / 1e6)


def _headers(to: Contender) -> dict[str, str]:
    return {"Content-Type": "application/json"} | to.headers


def _options(headers: dict[str, str]) -> list[str]:
    return [f"-H{name}: {value}" for name, value in headers.items()]


async def run(*command: str) -> str:
    """The output of a tool; raises RuntimeError if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {output.decode()}")
    return output.decode()
