"""Deliberate breaks of the product, one patch each, which the checker must catch: else it could not fail."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.run import run
from tests.system.stack import ROOT

PATCHES = Path(__file__).parent / "mutations"
CATCH_SECONDS, SLICE_SECONDS = 120.0, 30.0
"""So long the nemesis may take to bring a mutation out; after each slice the checker looks."""
PRODUCT = ("gateway", "worker", "shared", "pyproject.toml")


class DoesNotApplyError(Exception):
    """The product has changed, and the patch must change with it."""


@dataclass(frozen=True)
class Mutation:
    """A break of one promise, and the faults that bring it out."""

    name: str
    sentence: str
    promises: tuple[str, ...]
    faults: tuple[str, ...]
    patch: Path

    def applied(self, folder: Path) -> Path:
        """A copy of the product in the folder, with the patch; raises DoesNotApplyError."""
        for name in PRODUCT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        command = ["git", "apply", "--unsafe-paths", f"--directory={folder}", str(self.patch)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DoesNotApplyError(f"{self.name}: {done.stderr}")
        return folder


def mutations() -> list[Mutation]:
    """All of them, by name."""
    return [read(patch) for patch in sorted(PATCHES.glob("*.patch"))]


def read(patch: Path) -> Mutation:
    """A mutation from the head of its patch."""
    head = patch.read_text().partition("diff --git")[0]
    fields = dict(re.findall(r"^(Promises|Faults): (.+)$", head, re.MULTILINE))
    sentence = head.partition("Promises:")[0].strip()
    return Mutation(patch.stem, sentence, tuple(fields["Promises"].split()), tuple(fields["Faults"].split()), patch)


@dataclass(frozen=True)
class Catch:
    """What the checker has found of a mutation, and how many seconds of nemesis it took."""

    mutation: Mutation
    seconds: float
    violations: list[str]

    @property
    def promises(self) -> list[str]:
        """Those that were found broken."""
        return sorted({violation.partition(":")[0] for violation in self.violations})


async def catch(mutation: Mutation, seed: int) -> Catch:
    """Runs the broken product until the checker finds something, or the time is over."""
    seconds = 0.0
    with TemporaryDirectory(prefix=f"inkwell-{mutation.name}-") as folder:
        tree = mutation.applied(Path(folder))
        while seconds < CATCH_SECONDS:
            verdict = await run(SLICE_SECONDS, seed, mutation.faults, tree=tree)
            seconds, seed = seconds + SLICE_SECONDS, seed + 1
            if found := [each for each in verdict.violations if each.startswith(mutation.promises)]:
                return Catch(mutation, seconds, found)
    return Catch(mutation, seconds, [])
