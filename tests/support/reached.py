"""Logs which error paths of the services a process takes, with the test that has started it.

The services' modules are changed while they are imported: the product's code has no switch for this.
"""

import ast
import asyncio
import builtins
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

LOG = "REACHED_LOG"
LABEL = "REACHED_LABEL"
HOOK = "__reached__"
ROOT = Path(__file__).parent.parent.parent


def load_listing() -> Any:
    """The module that lists error paths; its package is not on the path of every process."""
    spec = spec_from_file_location("inkwell_error_paths", ROOT / "dev" / "error_paths.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


LISTING = load_listing()


class Hook:
    """What the changed modules call; each method has the key of its error path first."""

    def __init__(self, log: str) -> None:
        self._file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._seen = set[str]()

    def record(self, key: str) -> None:
        """An error path is taken."""
        line = f"{key}\t{os.environ.get('PYTEST_CURRENT_TEST') or os.environ.get(LABEL, '')}\n"
        if line not in self._seen:
            self._seen.add(line)
            os.write(self._file, line.encode())

    def value(self, key: str, value: Any) -> Any:
        """The value, for a back-off."""
        self.record(key)
        return value

    def watched(self, key: str, inner: Any) -> "Watched":
        """The same context manager, which records that it has suppressed an error, or that its time is over."""
        return Watched(self, key, inner)

    async def awaited(self, key: str, awaitable: Awaitable[Any]) -> Any:
        """The result, of a call with a timeout."""
        try:
            return await awaitable
        except TimeoutError:
            self.record(key)
            raise

    async def waited(self, key: str, awaitable: Awaitable[Any]) -> Any:
        """The result of `asyncio.wait`, which reports with what is pending that the time is over."""
        done, pending = await awaitable
        if pending:
            self.record(key)
        return done, pending

    def callback(self, key: str, function: Callable[..., object]) -> Callable[..., object]:
        """The same function, for a timer."""

        def call(*arguments: object) -> object:
            self.record(key)
            return function(*arguments)

        return call


class Watched:
    """A context manager that records its own effect on exceptions."""

    def __init__(self, hook: Hook, key: str, inner: Any) -> None:
        self._hook = hook
        self._key = key
        self._inner = inner

    def __enter__(self) -> Any:
        return self._inner.__enter__()

    def __exit__(self, kind: object, *error: object) -> Any:
        result = self._inner.__exit__(kind, *error)
        if kind and result:
            self._hook.record(self._key)
        return result

    async def __aenter__(self) -> Any:
        return await self._inner.__aenter__()

    async def __aexit__(self, kind: object, *error: object) -> Any:
        try:
            return await self._inner.__aexit__(kind, *error)
        except TimeoutError:
            if kind is asyncio.CancelledError:  # otherwise it has passed on an inner one
                self._hook.record(self._key)
            raise


class Instrument(ast.NodeTransformer):
    """Puts calls of the hook at the error paths."""

    def __init__(self, keys: dict[ast.AST, str]) -> None:
        self._keys = keys

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        key = self._keys[node]
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(hook("record", key)))
        return node

    def visit_Await(self, node: ast.Await) -> ast.AST:
        call, key = node.value, self._keys.pop(node.value, None)
        self.generic_visit(node)
        if key is None or not isinstance(call, ast.Call):
            return node
        method = "waited" if ast.unparse(call.func) == "asyncio.wait" else "awaited"
        return ast.Await(hook(method, key, node.value))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        key = self._keys.get(node)
        self.generic_visit(node)
        if key is None:
            return node
        called = ast.unparse(node.func)
        if called in ("suppress", "asyncio.timeout", "asyncio.timeout_at"):
            return hook("watched", key, node)
        if called == "choose_backoff":
            return hook("value", key, node)
        if called.endswith(LISTING.TIMERS):
            node.args[1] = hook("callback", key, node.args[1])
        return node


def hook(method: str, key: str, *arguments: ast.expr) -> ast.Call:
    """A call of the hook."""
    function = ast.Attribute(ast.Name(HOOK, ast.Load()), method, ast.Load())
    return ast.Call(function, [ast.Constant(key), *arguments], [])


class Loader(SourceFileLoader):
    """Compiles a module with the hook's calls in it, and leaves the cached one alone."""

    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.get_filename(fullname))
        tree = ast.parse(path.read_bytes())
        root = path.parents[fullname.count(".") + self.is_package(fullname)]
        paths = LISTING.find_error_paths(path.relative_to(root).as_posix(), tree)
        keys = {each.node: f"{each.module}::{each.name}" for each in paths}
        changed = ast.fix_missing_locations(Instrument(keys).visit(tree))
        return compile(changed, str(path), "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds the services' modules."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in LISTING.PACKAGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def log_when_imported() -> None:
    """Changes every module of the services that this process imports from now on."""
    setattr(builtins, HOOK, Hook(os.environ[LOG]))
    sys.meta_path.insert(0, Finder())
