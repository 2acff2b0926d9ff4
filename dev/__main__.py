"""What `make up`, `make down`, `make logs` and `make dev` do: `python -m dev COMMAND`."""

import argparse
import os
import subprocess
import sys
from typing import NoReturn

from honcho.manager import Manager

from dev.services import from_environment, services

DEV_KEY = "for-development-only-for-development-only"
WELCOME = """
Inkwell is up at http://127.0.0.1:{port} (interactive documentation at /docs). Try:

curl -i http://127.0.0.1:{port}/notes/ -H 'Content-Type: application/json' \\
  -d '{{"title": "Ink", "description": "Buy a bottle"}}'
curl http://127.0.0.1:{port}/notes/
"""


def up() -> int:
    """Builds and starts the stack; returns when every container is healthy."""
    compose = ["docker", "compose"]
    if from_environment():
        print("using the Postgres and the RabbitMQ that INKWELL_DATABASE_URL and INKWELL_BROKER_URL name")
        steps = [
            ["run", "--build", "--rm", "--no-deps", "migrate"],
            ["up", "-d", "--wait", "--no-deps", "gateway", "worker"],
        ]
    else:
        steps = [["up", "--build", "-d", "--wait"]]
    for step in steps:
        if code := subprocess.call([*compose, *step]):
            print("not everything is healthy; `make logs` tells why", file=sys.stderr)
            return code
    published = subprocess.check_output([*compose, "port", "gateway", "8000"], text=True)
    print(WELCOME.format(port=published.strip().rpartition(":")[2]))
    return 0


def down() -> int:
    """Stops the stack; the data stays in its volumes."""
    return subprocess.call(["docker", "compose", "down"])


def logs() -> NoReturn:
    """Follows the stack's logs."""
    os.execvp("docker", ["docker", "compose", "logs", "--follow", "--tail=100"])  # noqa: S606 - Ctrl-C is Docker's


def dev() -> int:
    """Runs gateway and worker from the source and restarts each when its code changes."""
    with services() as urls:
        environment = {
            "INKWELL_SIGNING_KEYS": DEV_KEY,
            "INKWELL_FINGERPRINT_KEY": DEV_KEY,
            **os.environ,
            "INKWELL_DATABASE_URL": urls.database_url,
            "INKWELL_BROKER_URL": urls.broker_url,
        }
        subprocess.check_call(["alembic", "upgrade", "head"], env=environment)
        manager = Manager()
        reload = "uvicorn gateway.app:create_app --factory --reload --reload-dir gateway --reload-dir shared"
        manager.add_process("gateway", reload, env=environment)
        manager.add_process("worker", "watchfiles 'python -m worker' worker shared", env=environment)
        manager.loop()
        return manager.returncode or 0


COMMANDS = {"up": up, "down": down, "logs": logs, "dev": dev}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dev")
    parser.add_argument("command", choices=COMMANDS)
    sys.exit(COMMANDS[parser.parse_args().command]())
