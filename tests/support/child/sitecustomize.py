"""Python imports this module when a process starts that tests have started: their PYTHONPATH has this folder."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def load(name: str) -> Any:
    """The module of this name in tests/support; `tests` is not on the path of every process."""
    spec = spec_from_file_location(name, Path(__file__).parent.parent / f"{name}.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if "MESSAGE_WITNESS" in os.environ:
    load("message_witness").watch_when_imported()
if "REACHED_LOG" in os.environ:
    load("reached").log_when_imported()
