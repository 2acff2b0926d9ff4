"""Starts services as forks of a process that has imported them: importing takes a second of processor time and more."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

SERVICES = ("gateway", "worker")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([f"{service}.__main__" for service in SERVICES])


class Fork:
    """A service that runs as `python -m` would run it; has what is used of `subprocess.Popen`."""

    def __init__(self, service: str, environment: dict[str, str], folder: Path, log: Path) -> None:
        self._process = _context.Process(target=run, args=(service, environment, folder, log), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, signal_number: int) -> None:
        os.kill(self.pid, signal_number)

    def wait(self, seconds: float) -> int:
        """The exit code; raises TimeoutError."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} runs after {seconds:.0f} s")
        return self._process.exitcode


def run(service: str, environment: dict[str, str], folder: Path, log: Path) -> None:
    """Becomes the service."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [service]
    runpy.run_module(service, run_name="__main__", alter_sys=True)
