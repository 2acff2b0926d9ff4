"""Implements `make up`, `make down`, `make logs`, `make dev` and so on: `python -m dev COMMAND`."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from dev.backend import DEVELOPMENT_KEY, UnavailableError
from dev.services import backend_in_use, backend_to_start, from_environment, services
from dev.supervised import Program, Supervisor

DEVELOPMENT = {
    "INKWELL_ENVIRONMENT": "development",
    "INKWELL_SIGNING_KEYS": DEVELOPMENT_KEY,
    "INKWELL_FINGERPRINT_KEY": DEVELOPMENT_KEY,
    "INKWELL_PORT": "8000",
}
"""Defaults of `make dev` for settings that the shell does not set."""
WELCOME = r"""
Inkwell is up at http://127.0.0.1:{port}, with interactive documentation at /docs. To try it, paste the lines under
"Try it" in README.md.
"""


def up() -> None:
    """Start the stack; returns when it is healthy."""
    if given := from_environment():
        print("using the Postgres and the RabbitMQ that INKWELL_DATABASE_URL and INKWELL_BROKER_URL name")
    print(WELCOME.format(port=backend_to_start().up(given)))


def down() -> None:
    """Stop the stack; its data are kept."""
    backend_in_use().down()


def logs() -> None:
    """Follows the stack's logs."""
    backend_in_use().logs()


def stop_worker() -> None:
    """Stop the worker, to show how the gateway works without one."""
    backend_in_use().stop("worker")


def start_worker() -> None:
    """Start the worker again."""
    backend_in_use().start("worker")


def doctor() -> None:
    """Make both services of the stack examine their connections."""
    backend, given = backend_in_use(), from_environment()
    sys.exit(max([backend.run(given, "gateway", "doctor"), backend.run(given, "worker", "doctor")]))


def dev() -> None:
    """Run gateway and worker from the source and restart each when its code changes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), services() as urls, TemporaryDirectory(prefix="inkwell-dev-") as folder:
        environment = {name: os.environ.get(name, value) for name, value in DEVELOPMENT.items()}
        environment["INKWELL_DATABASE_URL"] = urls.database_url
        subprocess.check_call([sys.executable, "-m", "alembic", "upgrade", "head"], env=os.environ | environment)
        reloaded = ["gateway.app:create_app", "--factory", "--reload", "--reload-dir=gateway", "--reload-dir=shared"]
        commands = {
            "gateway": ["uvicorn", *reloaded, "--port", environment["INKWELL_PORT"]],
            "worker": ["watchfiles", f"{sys.executable} -m worker", "worker", "shared"],
        }
        programs = [
            Program(
                service,
                [sys.executable, "-m", *command],
                environment | {"INKWELL_BROKER_URL": urls.broker_url_of(service)},
            )
            for service, command in commands.items()
        ]
        supervisor = Supervisor(Path(folder))
        try:
            supervisor.start(programs)
            follow(supervisor.log(service) for service in commands)
        finally:
            supervisor.stop()


def follow(logs: Iterable[Path]) -> None:
    """Print what is written to the files, from the beginning, until Ctrl-C."""
    subprocess.call(["tail", "--lines=+1", "--follow=name", "--retry", *map(str, logs)])


COMMANDS = {
    "up": up,
    "down": down,
    "logs": logs,
    "dev": dev,
    "stop-worker": stop_worker,
    "start-worker": start_worker,
    "doctor": doctor,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dev")
    subjects = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subjects.add_parser(name, help=command.__doc__)
    running = subjects.add_parser("run", help="Runs a tool of a service, as `run worker dead-letters list`.")
    running.add_argument("service", choices=("gateway", "worker"))
    running.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    try:
        if asked.command == "run":
            sys.exit(backend_in_use().run(from_environment(), asked.service, *asked.arguments))
        COMMANDS[asked.command]()
    except UnavailableError as error:
        sys.exit(str(error))
