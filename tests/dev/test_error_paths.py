"""Every error path of the services is reached by a test that exists, or has a reason why it is not."""

import ast
from pathlib import Path

from dev.backend import ROOT
from dev.error_paths import EVIDENCE, FAULT, PAGE, REASON, build_page, find_error_paths, list_error_paths, read_evidence
from tests.faults.rigs import RIGS

PATHS = list_error_paths()
CODE = """
async def fetch(self):
    try:
        async with asyncio.timeout(5):
            with suppress(OSError):
                return await connect(timeout=2)
    except TimeoutError:
        try:
            raise
        except TimeoutError:
            await asyncio.sleep(choose_backoff(1))
"""


def test_error_paths_are_handlers_deadlines_and_back_offs_and_have_names_of_their_own() -> None:
    assert [each.name for each in find_error_paths("worker/x.py", ast.parse(CODE))] == [
        "fetch: asyncio.timeout(5)",
        "fetch: suppress(OSError)",
        "fetch: connect(timeout=…)",
        "fetch: except TimeoutError",
        "fetch: except TimeoutError (2)",
        "fetch: choose_backoff(1)",
    ]


def test_each_error_path_is_listed_once_and_nothing_else_is() -> None:
    listed = {(module, name) for module, names in read_evidence().items() for name in names}
    found = {(each.module, each.name) for each in PATHS}
    assert len(found) == len(PATHS)
    assert found - listed == set(), f"add them to {EVIDENCE}"
    assert listed - found == set(), f"remove them from {EVIDENCE}"


def test_what_reaches_an_error_path_exists() -> None:
    faults = {fault for rig in RIGS.values() for fault in rig.faults}
    for by in {by for names in read_evidence().values() for by in names.values()}:
        if by.startswith(FAULT):
            assert by.removeprefix(FAULT) in faults
        elif not by.startswith(REASON):
            file, _, test = by.partition("::")
            assert test in functions(ROOT / "tests" / file), by


def functions(path: Path) -> set[str]:
    """The names of a module's functions."""
    tree = ast.parse(path.read_text())
    return {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_page_is_that_of_the_source() -> None:
    page = PAGE.read_text()
    assert page == build_page(page, PATHS, read_evidence()), "run `python -m dev.error_paths`"
