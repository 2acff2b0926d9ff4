"""Background processes under their own supervisord; one folder holds its files and their logs."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from configparser import RawConfigParser
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dev.backend import ROOT, UnavailableError

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Program:
    """A process to keep running; programs stop in reverse order."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    user: str | None = None
    stop_signal: str = "TERM"
    starts_by_itself: bool = True

    def settings(self, priority: int, log: Path) -> dict[str, str]:
        """Its section of the configuration."""
        # Supervisor cannot quote what `environment=` holds, but reads a command as the shell does.
        command = shlex.join(["env", *(f"{name}={value}" for name, value in self.environment.items()), *self.command])
        for comment in (" #", " ;"):
            command = command.replace(comment, f" ''{comment[1]}")
        settings = {
            "command": command,
            "directory": str(self.folder),
            "priority": str(priority),
            "autostart": str(self.starts_by_itself),
            "autorestart": "true",
            "stopsignal": self.stop_signal,
            "stopwaitsecs": "40",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": str(log),
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": "1",
        } | ({"user": self.user} if self.user else {})
        return {name: value.replace("%", "%%") for name, value in settings.items()}


class Supervisor:
    """The supervisord of a folder, running or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._configuration = folder / "supervisord.conf"

    def log(self, program: str) -> Path:
        """The log of a program."""
        return self.folder / "logs" / f"{program}.log"

    @property
    def is_running(self) -> bool:
        """Whether supervisord answers."""
        return self._configuration.exists() and self._ask("pid").returncode == 0

    def start(self, programs: Sequence[Program]) -> None:
        """Run exactly these programs: start new and changed ones, stop the others."""
        was_running = self.is_running
        self._configure(programs)
        if was_running:
            self.control("update")
        else:
            subprocess.check_call([sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)])

    def control(self, *arguments: str) -> None:
        """Run a command of supervisorctl."""
        result = self._ask(*arguments)
        if result.returncode:
            raise UnavailableError(f"{result.stdout.strip()}; `make logs` may say why")

    def stop(self) -> None:
        """Stop every program and the daemon; returns when all have ended."""
        with _uninterrupted():
            if not self.is_running:
                return
            pid = int(self._ask("pid").stdout)
            self.control("shutdown")
            if not _until(lambda: not _exists(pid), STOP_TIMEOUT_SECONDS):
                raise UnavailableError(f"supervisord (process {pid}) does not stop")

    def wait_for(self, program: str, is_ready: Callable[[], bool]) -> None:
        """Return when the program is ready; raises with the end of its log if it is late."""
        if not _until(is_ready, START_TIMEOUT_SECONDS):
            end = "\n".join(self.log(program).read_text(errors="replace").splitlines()[-10:])
            raise UnavailableError(f"{end}\n{program} is not ready; the end of {self.log(program)} is above")

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self._configuration), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    def _configure(self, programs: Sequence[Program]) -> None:
        (self.folder / "logs").mkdir(exist_ok=True)
        socket = self.folder / "socket"
        parser = RawConfigParser()
        parser["supervisord"] = {
            "logfile": str(self.folder / "supervisord.log"),
            "pidfile": str(self.folder / "supervisord.pid"),
        }
        parser["unix_http_server"] = {"file": str(socket)}
        parser["supervisorctl"] = {"serverurl": f"unix://{socket}"}
        parser["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        for priority, program in enumerate(programs):
            parser[f"program:{program.name}"] = program.settings(priority, self.log(program.name))
        self._configuration.touch(mode=0o600)
        with self._configuration.open("w") as file:
            parser.write(file)


def _until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignores Ctrl-C in this process and its children: a second one would leave everything running."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
