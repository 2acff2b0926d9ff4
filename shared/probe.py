"""The image's health check: exits with 0 if the gateway or the worker in this container is ready.

Tries both ports, since only one of the services runs. Imports almost nothing, since it runs often.
"""

import os
import socket
import sys

LISTENING = (
    ("INKWELL_HOST", "INKWELL_PORT", "8000"),
    ("INKWELL_WORKER_HEALTH_HOST", "INKWELL_WORKER_HEALTH_PORT", "8081"),
)
"""The settings for where each service listens, and its default port."""
LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = ("", "::", "0.0.0.0")  # noqa: S104 - only connected to
TIMEOUT_SECONDS = 3.0
REQUEST = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def is_ready(host: str, port: str) -> bool:
    """Whether a service at this address reports that it is ready."""
    try:
        with socket.create_connection((host, int(port)), TIMEOUT_SECONDS) as connection:
            connection.sendall(REQUEST)
            with connection.makefile("rb") as response:
                return response.readline(100).split()[1:2] == [b"200"]
    except OSError:
        return False


def address(host_setting: str, port_setting: str, default_port: str) -> tuple[str, str]:
    """Return the host and port to connect to for one of the services."""
    host = os.environ.get(host_setting, LOOPBACK)
    port = os.environ.get(port_setting, "")  # a URL if Kubernetes has set it for a Service named `inkwell`
    return LOOPBACK if host in EVERY_ADDRESS else host, port if port.isdecimal() else default_port


if __name__ == "__main__":
    sys.exit(not any(is_ready(*address(*settings)) for settings in LISTENING))
