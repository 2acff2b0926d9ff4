"""Postgres, RabbitMQ and Inkwell as processes of this machine, without Docker."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import httpx
from dotenv import dotenv_values

from dev import postgres, rabbitmq
from dev.backend import ROOT, Services, UnavailableError
from dev.supervised import Program, Supervisor

PUBLIC_KEY = "change-me-change-me-change-me-change-me"


@dataclass(frozen=True)
class Ports:
    """Ports of loopback."""

    postgres: int
    rabbitmq: int
    distribution: int
    epmd: int
    worker_health: int

    @classmethod
    def free(cls) -> "Ports":
        """Some that nobody listens on."""
        with ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in fields(cls)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            return cls(*(probe.getsockname()[1] for probe in probes))

    @property
    def services(self) -> Services:
        """Where the servers are that listen on them."""
        return Services(
            f"postgresql://inkwell:inkwell@127.0.0.1:{self.postgres}/inkwell",
            f"amqp://guest:guest@127.0.0.1:{self.rabbitmq}/",
        )


@contextmanager
def servers() -> Iterator[Services]:
    """Processes that end with the block, and a folder that is removed with them."""
    with TemporaryDirectory(prefix="inkwell-") as name:
        folder = _open_to_all(Path(name))
        supervisor, ports = Supervisor(folder), Ports.free()
        programs = _servers(folder, ports)
        try:
            supervisor.start(programs)
            _wait_for_servers(supervisor, ports)
            yield ports.services
        finally:
            supervisor.stop()


def is_running() -> bool:
    """Whether `make up` has started the stack here."""
    return Supervisor(_state()).is_running


def up(given: Services | None) -> str:
    """Starts the stack, or follows what has changed; the gateway's port, once all is healthy."""
    supervisor = Supervisor(_state())
    if supervisor.is_running:
        supervisor.control("stop", "gateway", "worker")
    print(f"starting processes; their data and logs are in {supervisor.folder}", flush=True)
    environment = _environment()
    _require_free(environment["INKWELL_PORT"])
    ports = _ports(supervisor)
    urls = given or ports.services
    programs = [] if given else _servers(supervisor.folder, ports)
    supervisor.start([*programs, *_inkwell(environment, given, ports)])
    if not given:
        _wait_for_servers(supervisor, ports)
        _run([postgres.tool("psql", _state()), "--quiet", f"--file={ROOT / 'dev/roles.sql'}", urls.database_url])
    _run([sys.executable, "-m", "alembic", "upgrade", "head"], INKWELL_DATABASE_URL=urls.database_url)
    supervisor.control("start", "gateway", "worker")
    supervisor.wait_for("gateway", lambda: _is_healthy(environment["INKWELL_PORT"]))
    supervisor.wait_for("worker", lambda: _is_healthy(ports.worker_health))
    return environment["INKWELL_PORT"]


def down() -> None:
    """Stops the stack; the data stay in its folder."""
    Supervisor(_state()).stop()
    print(f"nothing is running; the data are in {_state()}")


def stop(service: str) -> None:
    """Stops one service of the stack."""
    Supervisor(_state()).control("stop", service)
    print(f"{service} is stopped")


def start(service: str) -> None:
    """Starts it again."""
    Supervisor(_state()).control("start", service)
    print(f"{service} is started")


def logs() -> NoReturn:
    """Follows the stack's logs."""
    files = sorted(map(str, (_state() / "logs").glob("*.log")))
    os.execvp("tail", ["tail", "-n", "100", "-F", *files])  # noqa: S606 - Ctrl-C is tail's


def _state() -> Path:
    """The folder of this checkout; root's is not at home, where Postgres, which is not root, could not read it."""
    home = os.environ.get("INKWELL_STATE") or (
        Path("/var/lib/inkwell") if os.geteuid() == 0 else Path.home() / ".local/state/inkwell"
    )
    folder = Path(home) / sha256(str(ROOT).encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    _open_to_all(folder.parent)
    return _open_to_all(folder)


def _open_to_all(folder: Path) -> Path:
    folder.chmod(0o711)
    return folder


def _ports(supervisor: Supervisor) -> Ports:
    """Those of the stack that runs, or new ones."""
    file = supervisor.folder / "ports.json"
    if not supervisor.is_running:
        file.write_text(json.dumps(asdict(Ports.free())))
    return Ports(**json.loads(file.read_text()))


def _servers(folder: Path, ports: Ports) -> list[Program]:
    node = rabbitmq.programs(folder, ports.rabbitmq, ports.distribution, ports.epmd)
    return [postgres.program(folder, ports.postgres, _state()), *node]


def _wait_for_servers(supervisor: Supervisor, ports: Ports) -> None:
    is_ready = [postgres.tool("pg_isready", _state()), "--quiet", "--host=127.0.0.1", f"--port={ports.postgres}"]
    supervisor.wait_for("postgres", lambda: subprocess.call(is_ready) == 0)
    supervisor.wait_for("rabbitmq", lambda: _is_listened_on(ports.rabbitmq))


def _inkwell(environment: dict[str, str], given: Services | None, ports: Ports) -> list[Program]:
    """The two services, each as its own role, as under Compose."""
    programs = []
    for service in ("gateway", "worker"):
        role = f"//inkwell_{service}:inkwell_{service}@"
        own = Services(ports.services.database_url.replace("//inkwell:inkwell@", role), ports.services.broker_url)
        urls = asdict(given or own)
        settings = environment | {f"INKWELL_{name.upper()}": url for name, url in urls.items()}
        settings["INKWELL_WORKER_HEALTH_PORT"] = str(ports.worker_health)
        programs.append(Program(service, [sys.executable, "-m", service], settings, starts_by_itself=False))
    return programs


def _environment() -> dict[str, str]:
    """The settings of the services: the shell's, then those of `.env`, then Compose's defaults."""
    given = {**dotenv_values(ROOT / ".env"), **os.environ}
    return {
        "INKWELL_SIGNING_KEYS": PUBLIC_KEY,
        "INKWELL_FINGERPRINT_KEY": PUBLIC_KEY,
        "INKWELL_PORT": "8000",
        **{name: value for name, value in given.items() if name.startswith("INKWELL_") and value},
        "INKWELL_HOST": "127.0.0.1",
    }


def _require_free(port: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise UnavailableError(
                f"cannot listen on port {port} of 127.0.0.1: {error}; choose another with `INKWELL_PORT=8001 make up`"
            ) from error


def _is_listened_on(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_healthy(port: str | int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _run(command: list[str], **environment: str) -> None:
    if subprocess.call(command, cwd=ROOT, env={**os.environ, **environment}):
        raise UnavailableError(f"`{' '.join(command[-3:])}` has failed")
