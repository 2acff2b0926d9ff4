"""Lists every error path of the services, and which test or fault reaches it: writes docs/error-paths.md.

An error path is an `except`, a `suppress`, a deadline, a timer or a back-off. What reaches it is in
tests/error_paths.toml, by module and path. `python -m dev.error_paths --reached LOG` compares that with what a test run
has reached, which it logs if REACHED_LOG names a file and PYTHONPATH has the folder tests/support/child.
"""

import argparse
import ast
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "worker", "shared")
EVIDENCE = ROOT / "tests" / "error_paths.toml"
PAGE = ROOT / "docs" / "error-paths.md"
DEADLINES = {"asyncio.timeout", "asyncio.timeout_at", "asyncio.wait_for"}
TIMERS = ("call_at", "call_later")
HEAD = "| where | what | reached by |\n|---|---|---|\n"
REASON = "not reached: "
FAULT = "fault "
"""What the evidence begins with if it names no test."""


@dataclass(frozen=True)
class ErrorPath:
    """One place that handles a failure, or limits how long something may take."""

    module: str
    """Its path below the root."""
    name: str
    """The function and the source that catches or limits, numbered if the function has several of the same."""
    node: ast.ExceptHandler | ast.Call


def find_error_paths(module: str, tree: ast.Module) -> list[ErrorPath]:
    """Return the error paths of a module in the order of its source."""
    counts = Counter[str]()
    found: list[ErrorPath] = []
    for where, node in _walk(tree, ()):
        if what := describe(node):
            name = f"{where}: {what}"
            counts[name] += 1
            number = f" ({counts[name]})" if counts[name] > 1 else ""
            found.append(ErrorPath(module, name + number, node))
    return found


def _walk(node: ast.AST, where: Sequence[str]) -> Iterator[tuple[str, ast.ExceptHandler | ast.Call]]:
    """Yield the handlers and calls below a node, each with the names of the functions and classes around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ExceptHandler | ast.Call):
            yield ".".join(where) or "module", child
        names = [child.name] if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
        yield from _walk(child, [*where, *names])


def describe(node: ast.ExceptHandler | ast.Call) -> str | None:
    """Return what the node catches or limits, as in the source; None if it is not an error path."""
    if isinstance(node, ast.ExceptHandler):
        return f"except {ast.unparse(node.type)}" if node.type else "except"
    called = ast.unparse(node.func)
    if called in ("suppress", "choose_backoff") or called in DEADLINES or called.endswith(TIMERS):
        return ast.unparse(node)
    return f"{called}(timeout=…)" if any(each.arg == "timeout" for each in node.keywords) else None


def list_error_paths(root: Path = ROOT) -> list[ErrorPath]:
    """Return all error paths of the services."""
    modules = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return [
        each
        for path in modules
        for each in find_error_paths(path.relative_to(root).as_posix(), ast.parse(path.read_text()))
    ]


Evidence = Mapping[str, Mapping[str, str]]


def read_evidence(path: Path = EVIDENCE) -> Evidence:
    """Return by module and error path: a test, a fault, or the reason why nothing reaches it."""
    return tomllib.loads(path.read_text())


def build_page(page: str, paths: Sequence[ErrorPath], evidence: Evidence) -> str:
    """Return the page with new tables: one for each package, and one of what is not reached."""
    reached: dict[str, list[str]] = defaultdict(list)
    for each in paths:
        by = evidence[each.module][each.name]
        table = "unreached" if by.startswith(REASON) else each.module.partition("/")[0]
        reached[table].append(_row(each, by))
    for table, rows in reached.items():
        before, begin, rest = page.partition(f"<!-- error paths: {table} -->\n")
        _, end, after = rest.partition("<!-- end of error paths -->")
        page = before + begin + HEAD + "".join(rows) + end + after
    return page


def _row(path: ErrorPath, by: str) -> str:
    where, _, what = path.name.partition(": ")
    module = f"[{path.module}](../{path.module})"
    return f"| {module} `{where}` | `{what.replace('|', chr(92) + '|')}` | {_describe_evidence(by)} |\n"


def _describe_evidence(by: str) -> str:
    """Return a test as its sentence with a link to its file; a fault and a reason as they are."""
    if by.startswith((FAULT, REASON)):
        return by.removeprefix(REASON)
    file, _, test = by.partition("::")
    return f"[{test.removeprefix('test_').replace('_', ' ')}](../tests/{file})"


def compare(log: Path, paths: Sequence[ErrorPath], evidence: Evidence) -> Iterator[str]:
    """Yield for each error path whether the log has what its evidence says, and what has reached it."""
    reached: dict[str, Counter[str]] = defaultdict(Counter)
    for line in log.read_text().splitlines():
        key, _, by = line.partition("\t")
        reached[key][by.removeprefix("tests/").partition(" (")[0].partition("[")[0]] += 1
    for each in paths:
        key = f"{each.module}::{each.name}"
        by = evidence.get(each.module, {}).get(each.name, "")
        sign = "ok " if by and by in reached[key] else "?? " if reached[key] else "-- "
        yield f"{sign}{key}\n     {by or 'no evidence'}"
        if sign != "ok ":
            yield from (f"         {test}" for test in sorted(reached[key]))


def main() -> None:
    """Write the page, or compare the evidence with what a run has reached."""
    parser = argparse.ArgumentParser(prog="python -m dev.error_paths", description=__doc__)
    parser.add_argument("--reached", type=Path, metavar="LOG", help="what a test run has reached")
    options = parser.parse_args()
    paths, evidence = list_error_paths(), read_evidence()
    if options.reached:
        print("\n".join(compare(options.reached, paths, evidence)))
    elif missing := [each.name for each in paths if each.name not in evidence.get(each.module, {})]:
        sys.exit(f"{EVIDENCE} lacks {', '.join(missing)}")
    else:
        PAGE.write_text(build_page(PAGE.read_text(), paths, evidence))


if __name__ == "__main__":
    main()
