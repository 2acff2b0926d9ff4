"""Postgres, RabbitMQ and Inkwell as local processes, without Docker."""

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
from dev.backend import DEVELOPMENT_KEY, ROOT, Services, UnavailableError, require_free, with_hints_vhost
from dev.definitions import ADMINISTRATOR, definitions, definitions_for_tests
from dev.supervised import Program, Supervisor
from shared.settings import DEVELOPMENT_MARK

PASSWORDS = (
    "POSTGRES_MIGRATOR_PASSWORD",
    "POSTGRES_WORKER_PASSWORD",
    "POSTGRES_GATEWAY_PASSWORD",
    "RABBITMQ_WORKER_PASSWORD",
    "RABBITMQ_GATEWAY_PASSWORD",
)
OF_SERVICES = ("INKWELL_", "OTEL_")
"""The prefixes of the services' settings."""


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
        """Return free ports."""
        with ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in fields(cls)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            return cls(*(probe.getsockname()[1] for probe in probes))

    def database_url(self, user: str) -> str:
        """The URL of Postgres for a name with its password."""
        return f"postgresql://{user}@127.0.0.1:{self.postgres}/inkwell"

    def broker_url(self, user: str) -> str:
        """The URL of RabbitMQ for a name with its password."""
        return f"amqp://{user}@127.0.0.1:{self.rabbitmq}/"


def prepare() -> None:
    """Installs what `servers` needs."""
    rabbitmq.installed()
    postgres.tool("postgres", _state())


@contextmanager
def servers() -> Iterator[Services]:
    """Processes for the block, in a folder that is removed with them."""
    with TemporaryDirectory(prefix="inkwell-") as name:
        folder = _open_to_all(Path(name))
        supervisor, ports = Supervisor(folder), Ports.free()
        programs = _servers(folder, ports, definitions_for_tests())
        try:
            supervisor.start(programs)
            _wait_for_servers(supervisor, ports)
            database_url = ports.database_url(postgres.administrator(folder))
            yield Services(database_url, ports.broker_url(f"{ADMINISTRATOR}:{ADMINISTRATOR}"), has_broker_users=True)
        finally:
            supervisor.stop()


def is_running() -> bool:
    """Whether `make up` has started a local stack."""
    return Supervisor(_state()).is_running


def up(given: Services | None) -> str:
    """Start the stack, or restart what has changed; returns the gateway's port once it is healthy."""
    supervisor = Supervisor(_state())
    if supervisor.is_running:
        supervisor.control("stop", "gateway", "worker")
    print(f"starting processes; their data and logs are in {supervisor.folder}", flush=True)
    settings = _settings()
    require_free(settings["INKWELL_PORT"])
    ports = _ports(supervisor)
    programs = [] if given else _servers(supervisor.folder, ports, definitions(settings))
    supervisor.start([*programs, *_inkwell(settings, given, ports)])
    if not given:
        _wait_for_servers(supervisor, ports)
        _create_roles(supervisor.folder, ports, settings)
    _migrate(given.database_url if given else ports.database_url(_user("POSTGRES", "migrator", settings)), settings)
    supervisor.control("start", "gateway", "worker")
    supervisor.wait_for("gateway", lambda: _is_healthy(settings["INKWELL_PORT"]))
    supervisor.wait_for("worker", lambda: _is_healthy(ports.worker_health))
    return settings["INKWELL_PORT"]


def down() -> None:
    """Stop the stack; the data stay in its folder."""
    supervisor = Supervisor(_state())
    was_running = supervisor.is_running
    supervisor.stop()
    print(f"{'stopped' if was_running else 'nothing was running'}; the data are in {_state()}")


def stop(service: str) -> None:
    """Stop one service of the stack."""
    Supervisor(_state()).control("stop", service)
    print(f"{service} is stopped")


def start(service: str) -> None:
    """Start it again."""
    Supervisor(_state()).control("start", service)
    print(f"{service} is started")


def run(given: Services | None, service: str, *arguments: str) -> int:
    """Run a tool with the settings of a service, running or not; returns the exit code."""
    supervisor = Supervisor(_state())
    if not supervisor.is_running:
        raise UnavailableError("nothing is running; `make up` starts it")
    programs = _inkwell(_settings(), given, _ports(supervisor))
    program = next(program for program in programs if program.name == service)
    return subprocess.call([*program.command, *arguments], cwd=ROOT, env={**os.environ, **program.environment})


def logs() -> NoReturn:
    """Follows the stack's logs."""
    files = sorted(map(str, (_state() / "logs").glob("*.log")))
    os.execvp("tail", ["tail", "-n", "100", "-F", *files])  # noqa: S606 - Ctrl-C is tail's


def _state() -> Path:
    """The folder of this checkout; for root it is outside of root's home, which Postgres could not read."""
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
    """The ports of the running stack, or new ones."""
    file = supervisor.folder / "ports.json"
    if not supervisor.is_running:
        file.write_text(json.dumps(asdict(Ports.free())))
    return Ports(**json.loads(file.read_text()))


def _servers(folder: Path, ports: Ports, definitions: str) -> list[Program]:
    node = rabbitmq.programs(folder, ports.rabbitmq, ports.distribution, ports.epmd, definitions)
    return [postgres.program(folder, ports.postgres, _state()), *node]


def _wait_for_servers(supervisor: Supervisor, ports: Ports) -> None:
    is_ready = [postgres.tool("pg_isready", _state()), "--quiet", "--host=127.0.0.1", f"--port={ports.postgres}"]
    supervisor.wait_for("postgres", lambda: subprocess.call(is_ready) == 0)
    supervisor.wait_for("rabbitmq", lambda: _is_listened_on(ports.rabbitmq))


def _create_roles(folder: Path, ports: Ports, settings: dict[str, str]) -> None:
    """Create the roles; set their passwords at every start."""
    roles = ("migrator", "worker", "gateway")
    passwords = [f"-c inkwell.{role}_password={settings[f'POSTGRES_{role.upper()}_PASSWORD']}" for role in roles]
    name, _, password = postgres.administrator(folder).partition(":")
    files = [f"--file={ROOT / 'dev' / file}" for file in ("roles.sql", "databases.sql")]
    command = [postgres.tool("psql", _state()), "--quiet", "--set=ON_ERROR_STOP=1", *files, ports.database_url(name)]
    _run(command, PGPASSWORD=password, PGOPTIONS=" ".join(passwords))


def _migrate(database_url: str, settings: dict[str, str]) -> None:
    environment = {"INKWELL_ENVIRONMENT": settings["INKWELL_ENVIRONMENT"], "INKWELL_DATABASE_URL": database_url}
    _run([sys.executable, "-m", "alembic", "upgrade", "head"], **environment)


def _inkwell(settings: dict[str, str], given: Services | None, ports: Ports) -> list[Program]:
    """The two services, each with its own role and user, as under Compose."""
    programs = []
    for service in ("gateway", "worker"):
        own = {
            "INKWELL_DATABASE_URL": ports.database_url(_user("POSTGRES", service, settings)),
            "INKWELL_BROKER_URL": with_hints_vhost(ports.broker_url(_user("RABBITMQ", service, settings))),
        }
        if given:
            own = {"INKWELL_DATABASE_URL": given.database_url, "INKWELL_BROKER_URL": given.broker_url}
        environment = {name: value for name, value in settings.items() if name.startswith(OF_SERVICES)} | own
        environment["INKWELL_WORKER_HEALTH_PORT"] = str(ports.worker_health)
        programs.append(Program(service, [sys.executable, "-m", service], environment, starts_by_itself=False))
    return programs


def _user(server: str, service: str, settings: dict[str, str]) -> str:
    return f"inkwell_{service}:{settings[f'{server}_{service.upper()}_PASSWORD']}"


def _settings() -> dict[str, str]:
    """The settings and passwords: the shell's, then those of `.env`, then Compose's defaults."""
    given = {**dotenv_values(ROOT / ".env"), **os.environ}
    return {
        "INKWELL_ENVIRONMENT": "development",
        "INKWELL_SIGNING_KEYS": DEVELOPMENT_KEY,
        "INKWELL_FINGERPRINT_KEY": DEVELOPMENT_KEY,
        "INKWELL_PORT": "8000",
        **dict.fromkeys(PASSWORDS, DEVELOPMENT_MARK),
        **{name: value for name, value in given.items() if value and name.startswith((*OF_SERVICES, *PASSWORDS))},
        "INKWELL_HOST": "127.0.0.1",
    }


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
