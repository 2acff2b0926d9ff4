"""The worker's command line, as an operator uses it."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from worker.command_line import operate, read_arguments
from worker.settings import WorkerSettings

Result = tuple[int, list[dict[str, Any]], str]
"""The exit code, the objects on stdout, and stderr."""


@dataclass(frozen=True)
class Operator:
    """Runs `python -m worker … --json` in the test's process."""

    settings: WorkerSettings
    capsys: pytest.CaptureFixture[str]

    async def __call__(self, *arguments: object, settings: WorkerSettings | None = None) -> Result:
        self.capsys.readouterr()
        code = await operate(read_arguments([*map(str, arguments), "--json"]), settings or self.settings)
        printed = self.capsys.readouterr()
        # The worker of the test logs to stdout too.
        return code, [json.loads(line) for line in printed.out.splitlines() if line.startswith("{")], printed.err
