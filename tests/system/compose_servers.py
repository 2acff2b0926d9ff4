"""Compose's Postgres and RabbitMQ as docker-compose.yml runs them, on disks small enough to fill."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import yaml

from dev.backend import ROOT, Services
from dev.containers import image
from tests.support.proxy import free_port

DISK_MEGABYTES = 350
DISK_LIMIT = "disk_free_limit.absolute = {}MB\n"
PASSWORDS = {
    "POSTGRES_PASSWORD": "inkwell",
    "RABBITMQ_GATEWAY_PASSWORD": "inkwell_gateway",
    "RABBITMQ_WORKER_PASSWORD": "inkwell_worker",
    "INKWELL_QUEUE_PREFIX": "[a-z][a-z0-9-]*",
}


@dataclass(frozen=True)
class ComposeServers:
    """The two servers of a Compose project."""

    command: list[str]
    services: Services
    broker_metrics_port: int

    def compose(self, *arguments: str) -> str:
        """Runs `docker compose` with the arguments; returns its output."""
        done = subprocess.run(
            [*self.command, *arguments], env=os.environ | PASSWORDS, check=True, capture_output=True, text=True
        )
        return done.stdout

    def fill(self, disk: str) -> None:
        """Fills the disk of `postgres` or `rabbitmq` to the last byte."""
        self._on_disks(f"dd if=/dev/zero of=/disks/{disk}/filler bs=4k 2>/dev/null")

    def leave(self, disk: str, megabytes: int) -> None:
        """Fills the disk except for this much."""
        size = f"$(($(df --output=avail -m /disks/{disk} | tail -n 1) - {megabytes}))"
        self._on_disks(f"head -c {size}M /dev/zero > /disks/{disk}/filler")

    def free(self, disk: str) -> None:
        """Removes the files of `fill` and `leave`, if there are any."""
        self._on_disks(f"rm -f /disks/{disk}/filler")

    def _on_disks(self, command: str) -> None:
        self.compose("exec", "--no-TTY", "holder", "sh", "-c", f"{command}; true")


@contextmanager
def compose_servers(folder: Path, disk_limit_megabytes: int) -> Iterator[ComposeServers]:
    """Both servers for the block; RabbitMQ refuses messages below this much free space."""
    postgres, amqp, metrics = free_port(), free_port(), free_port()
    limit, override = folder / "limit.conf", folder / "override.yml"
    limit.write_text(DISK_LIMIT.format(disk_limit_megabytes))
    disk = {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": f"size={DISK_MEGABYTES}m"}}
    holder = {  # tmpfs would lose the data when a server restarts
        "image": image("RABBITMQ_IMAGE"),
        "entrypoint": ["sleep", "infinity"],
        "init": True,
        "volumes": ["postgres:/disks/postgres", "rabbitmq:/disks/rabbitmq"],
    }
    rabbitmq = {
        "ports": [f"127.0.0.1:{amqp}:5672", f"127.0.0.1:{metrics}:15692"],
        "volumes": [f"{limit}:/etc/rabbitmq/conf.d/limit.conf:ro"],
    }
    services = {"postgres": {"ports": [f"127.0.0.1:{postgres}:5432"]}, "rabbitmq": rabbitmq, "holder": holder}
    override.write_text(yaml.safe_dump({"services": services, "volumes": {"postgres": disk, "rabbitmq": disk}}))
    project, files = (
        f"inkwell-test-{uuid4().hex[:8]}",
        ["--file", f"{ROOT}/docker-compose.yml", "--file", str(override)],
    )
    command = ["docker", "compose", "--project-directory", str(ROOT), "--project-name", project, *files]
    urls = Services(f"postgresql://inkwell:inkwell@127.0.0.1:{postgres}/inkwell", f"amqp://127.0.0.1:{amqp}/", True)
    servers = ComposeServers(command, urls, metrics)
    try:
        servers.compose("up", "--detach", "--wait", *services)
        yield servers
    finally:
        servers.compose("down", "--volumes", "--timeout", "1")
