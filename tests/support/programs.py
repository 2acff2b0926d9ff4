"""Runs Inkwell's programs with valid settings, except for those that a test changes."""

import os
import subprocess
import sys

from dev.backend import ROOT
from shared.settings import DEVELOPMENT_MARK

SECRET = "hunter2-hunter2"
KEY = "a-key-that-is-used-in-the-tests-only"
GOOD = {
    "INKWELL_DATABASE_URL": f"postgresql://inkwell:{SECRET}@127.0.0.1:1/inkwell",
    "INKWELL_BROKER_URL": f"amqp://inkwell:{SECRET}@127.0.0.1:1/",
    "INKWELL_SIGNING_KEYS": KEY,
    "INKWELL_FINGERPRINT_KEY": KEY,
}
PUBLIC_KEY = f"{DEVELOPMENT_MARK}-{DEVELOPMENT_MARK}"
URLS = {
    "INKWELL_DATABASE_URL": "postgresql://inkwell:development%2Donly@127.0.0.1:1/inkwell",
    "INKWELL_BROKER_URL": "amqp://inkwell:development-only@127.0.0.1:1/",
}


def run(*arguments: str, **changes: str | None) -> "subprocess.CompletedProcess[str]":
    """Runs a Python module as a process with valid settings except for the changes; None removes one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INKWELL_")}
    environment = {name: value for name, value in (inherited | GOOD | changes).items() if value is not None}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def assert_refused(ended: "subprocess.CompletedProcess[str]", *names: str) -> None:
    """Asserts exit code 2, nothing on stdout, and one line on stderr that names the settings without a secret."""
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_one_line_names(ended.stderr, *names)


def assert_one_line_names(stderr: str, *names: str) -> None:
    assert len(stderr.splitlines()) == 1
    assert all(name in stderr for name in names)
    assert SECRET not in stderr
    assert KEY not in stderr
    assert PUBLIC_KEY not in stderr
