"""The conventions of CONTRIBUTING.md that no linter checks."""

import ast
import re
from collections.abc import Iterator

import pytest

from dev.backend import ROOT

MODULES = sorted(path for folder in ("gateway", "shared", "worker") for path in (ROOT / folder).rglob("*.py"))
ABSENT = re.compile(r"None|^(?:dict|list|set)\[")
"""A return type that can say that there is nothing."""


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """The syntax of all modules, each node with its place."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            yield f"{module.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def test_what_finds_may_return_nothing() -> None:
    functions = [
        (place, node)
        for place, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.strip("_").startswith("find")
    ]

    assert len(functions) > 10
    assert [place for place, node in functions if node.returns and not ABSENT.search(ast.unparse(node.returns))] == []


def test_each_line_assigns_one_value() -> None:
    pairs = [
        place
        for place, node in nodes()
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
    ]

    assert pairs == []


@pytest.mark.parametrize("handled", ["Exception", "BaseException"])
def test_what_catches_everything_says_why_or_raises(handled: str) -> None:
    for module in MODULES:
        lines = module.read_text().splitlines()
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ExceptHandler) and node.type and ast.unparse(node.type) == handled:
                raises = any(isinstance(each, ast.Raise) for each in ast.walk(node))
                comment = lines[node.lineno - 1].partition("# ")[2]
                assert raises or comment.partition(" - ")[2] or (comment and "noqa" not in comment), module
