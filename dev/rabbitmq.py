"""RabbitMQ as a private node on loopback: the system's program with its own name, ports, cookie and folders."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.backend import UnavailableError
from dev.supervised import Program
from shared.contracts import LARGEST_MESSAGE_BYTES

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Its path on Debian and Fedora; the wrapper on the PATH requires an account of its own."""
DISK_FREE_LIMIT = "1GB"
"""As in rabbitmq.conf: the default of 50 MB would let the disk fill up, after which a node must be restarted."""
POLICY = Path("/usr/sbin/policy-rc.d")
MISSING = """rabbitmq-server is missing, and could not be installed from here. Run this, then try again:

sudo apt-get install rabbitmq-server

Where there is no apt-get: install RabbitMQ 3.10 or newer another way, or start Docker."""


def programs(folder: Path, port: int, distribution_port: int, epmd_port: int, definitions: str) -> list[Program]:
    """The node and the port mapper, which it would otherwise start itself and leave running."""
    server, home = installed(), folder / "rabbitmq"
    home.mkdir(exist_ok=True)
    users = home / "definitions.json"
    users.touch(mode=0o600)
    users.write_text(definitions)
    (home / "rabbitmq.conf").write_text(
        f"listeners.tcp.local = 127.0.0.1:{port}\n"
        f"load_definitions = {users}\n"
        f"max_message_size = {LARGEST_MESSAGE_BYTES}\n"
        f"disk_free_limit.absolute = {DISK_FREE_LIMIT}\n"
    )
    (home / "enabled_plugins").write_text("[].\n")
    epmd = {"ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(epmd_port)}
    node = {
        "HOME": str(home),  # for the cookie
        "RABBITMQ_NODENAME": "inkwell@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(home),
        "RABBITMQ_LOG_BASE": str(home),
        "RABBITMQ_LOGS": "-",
    }
    return [
        Program("epmd", ["epmd"], epmd, folder),
        Program("rabbitmq", [server], epmd | node, folder),
    ]


def installed() -> str:
    """The path of the server, which is installed first if possible."""
    if not _find():
        _install()
    if not (found := _find()):
        raise UnavailableError(MISSING)
    return found


def _find() -> str | None:
    return str(SERVER) if SERVER.exists() else shutil.which("rabbitmq-server")


def _install() -> None:
    if shutil.which("brew"):
        print("RabbitMQ is missing; installing it with `brew install rabbitmq`", flush=True)
        subprocess.call(["brew", "install", "rabbitmq"])
    elif shutil.which("apt-get") and not os.geteuid():
        print("RabbitMQ is missing; installing it with `apt-get install rabbitmq-server`", flush=True)
        with _without_system_services():
            _apt_get("update")
            _apt_get("install", "--yes", "--no-install-recommends", "rabbitmq-server")


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.call(["apt-get", "--quiet", "--quiet", *arguments], env=environment)


@contextmanager
def _without_system_services() -> Iterator[None]:
    """Prevents Debian from starting what it installs, now and at the next boot."""
    had_policy = POLICY.exists()
    if not had_policy:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if not had_policy:
            POLICY.unlink()
    if shutil.which("systemctl"):
        subprocess.call(["systemctl", "--quiet", "disable", "rabbitmq-server", "epmd.socket", "epmd"])
