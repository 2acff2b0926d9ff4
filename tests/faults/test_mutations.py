"""Each mutation fits the current source, and the broken source still runs."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dev.backend import ROOT
from tests.faults.mutations import PACKAGES, Mutation, StalePatchError, applied, mutations
from tests.faults.nemesis import FAULTS

MUTATIONS = mutations()
PROMISES = set(re.findall(r"^\| (I\d+), ", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE))
"""Those that the page says the checker judges."""
EACH = pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])


def sources(tree: Path) -> Iterator[tuple[Path, str]]:
    """The modules of the services, by their paths in the tree."""
    for package in PACKAGES:
        for path in (tree / package).rglob("*.py"):
            yield path.relative_to(tree), path.read_text()


@EACH
def test_it_says_what_it_breaks_and_what_brings_that_out(mutation: Mutation) -> None:
    assert mutation.sentence.endswith(".")
    assert mutation.promises
    assert set(mutation.promises) <= PROMISES
    assert mutation.faults
    assert set(mutation.faults) <= set(FAULTS)


@EACH
def test_it_applies_and_leaves_other_code_that_compiles(mutation: Mutation, tmp_path: Path) -> None:
    mutated, original = dict(sources(applied(mutation, tmp_path))), dict(sources(ROOT))
    assert mutated.keys() == original.keys()
    patched = [path for path in original if mutated[path] != original[path]]
    assert [path for path in patched if ast.dump(ast.parse(mutated[path])) != ast.dump(ast.parse(original[path]))]


def test_patch_that_does_not_fit_fails_with_the_message_of_git(tmp_path: Path) -> None:
    stale = tmp_path / "stale.patch"
    stale.write_text("--- a/worker/apply.py\n+++ b/worker/apply.py\n@@ -1 +1 @@\n-not there\n+nor this\n")
    with pytest.raises(StalePatchError, match=r"(?s)stale: .*worker/apply\.py"):
        applied(replace(MUTATIONS[0], name="stale", path=stale), tmp_path / "tree")
