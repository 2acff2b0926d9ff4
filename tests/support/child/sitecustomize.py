"""Python imports this module when a process starts that tests have started: their PYTHONPATH has this folder."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if "MESSAGE_WITNESS" in os.environ:
    spec = spec_from_file_location("message_witness", Path(__file__).parent.parent / "message_witness.py")
    assert spec
    assert spec.loader
    message_witness = module_from_spec(spec)
    spec.loader.exec_module(message_witness)
    message_witness.watch_when_imported()
