"""Runs the commands of the README and of the tutorial without Docker, on temporary data: `make smoke`."""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dev.backend import ROOT
from dev.local import Ports

EXPECTED = [
    '"name":"ada"',
    "HTTP/1.1 201",
    '"version":1}',
    '"version":2}',
    "HTTP/1.1 204",
    "note_not_found",
    "HTTP/1.1 202",
    '"pending"',
    '"applied"',
]
"""The expected output of the commands, in this order."""
SIGN_IN_AND_LIST = r"""
TOKEN=$(curl -s http://127.0.0.1:8000/auth/token -d username=ada -d 'password=correct horse battery' |
  sed -E 's/.*"access_token":"([^"]+)".*/\1/')
curl -s http://127.0.0.1:8000/notes/ -H "Authorization: Bearer $TOKEN"
"""


def main() -> None:
    """Fails if a line fails, prints something else, or leaves a process running."""
    with TemporaryDirectory(prefix="inkwell-") as name:
        state, port = Path(name), str(Ports.free().postgres)
        state.chmod(0o711)
        environment = {**os.environ, "BACKEND": "local", "INKWELL_STATE": name, "INKWELL_PORT": port}
        try:
            _bash("make up", environment)
            _expect(EXPECTED, _bash(_documented_commands(port), environment))
            _bash("make down", environment)
            _expect_nothing_left(name)
            _bash("make up", environment)
            _expect(['"title":"Paper"'], _bash(SIGN_IN_AND_LIST.replace("8000", port), environment))
        finally:
            _bash("make down", environment)
        _expect_nothing_left(name)


def _documented_commands(port: str) -> str:
    _, _, readme = (ROOT / "README.md").read_text().partition("\n## Try it\n")
    tutorial = (ROOT / "docs/tutorial.md").read_text()
    page = (readme + tutorial).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    return "".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL))


def _bash(script: str, environment: dict[str, str]) -> str:
    command = ["bash", "-xeuo", "pipefail", "-c", script]
    output = subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True).stdout
    print(output, flush=True)
    return output


def _expect(fragments: list[str], output: str) -> None:
    for fragment in fragments:
        _, found, output = output.partition(fragment)
        if not found:
            sys.exit(f"the output lacks {fragment}, or has it too early")


def _expect_nothing_left(mark: str) -> None:
    """Fails if a process is left; all have the mark in their environment or arguments."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue  # has ended
        if mark.encode() in known:
            sys.exit(f"process {process.name} is left: {known[:200]!r}")


if __name__ == "__main__":
    main()
