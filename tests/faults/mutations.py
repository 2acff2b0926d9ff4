"""Deliberate breaks of the product: the checker must catch each, or a clean run proves nothing.

Each is a patch. Its head describes the break, the promises that must be found broken, and the faults that
expose it fastest.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dev.backend import ROOT

FOLDER = Path(__file__).with_name("mutations")
PACKAGES = ("gateway", "worker", "shared")


class StalePatchError(Exception):
    """The code that a mutation breaks has changed; its patch has to be updated."""


@dataclass(frozen=True)
class Mutation:
    """One deliberate break."""

    name: str
    sentence: str
    """A description of the break."""
    promises: tuple[str, ...]
    """The promises, at least one of which must be found broken."""
    faults: tuple[str, ...]
    """The faults of the nemesis that expose it."""
    path: Path


def mutations() -> list[Mutation]:
    """All mutations by name."""
    return [_read(path) for path in sorted(FOLDER.glob("*.patch"))]


def _read(path: Path) -> Mutation:
    head = path.read_text().partition("\ndiff --git ")[0].splitlines()
    return Mutation(path.stem, head[0], _words(head, "Promise:"), _words(head, "Faults:"), path)


def _words(head: list[str], label: str) -> tuple[str, ...]:
    """The text after the label; raises ValueError if the head lacks its line."""
    [line] = [line for line in head if line.startswith(label)]
    return tuple(line.removeprefix(label).split())


def applied(mutation: Mutation, to: Path) -> Path:
    """The folder, with the services' source as the mutation leaves it.

    Raises StalePatchError with git's message if the patch does not fit.
    """
    for package in PACKAGES:
        shutil.copytree(ROOT / package, to / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    # In a folder inside a repository, git would patch the repository's root.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(to.resolve().parent)}
    command = ["git", "apply", str(mutation.path)]
    result = subprocess.run(command, cwd=to, env=environment, check=False, capture_output=True, text=True)
    if result.returncode:
        raise StalePatchError(f"{mutation.name}: {result.stderr.strip()}")
    return to
