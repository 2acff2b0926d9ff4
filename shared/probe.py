"""The image's health check: ends with 0 if the gateway or the worker of this container is ready.

It asks both ports, since only one of them answers; it imports nothing of ours, since it runs every few seconds.
"""

import os
import sys
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

PORTS = {"INKWELL_PORT": "8000", "INKWELL_WORKER_HEALTH_PORT": "8081"}
"""The settings that move them, and where they are otherwise."""
TIMEOUT_SECONDS = 3


def is_ready(port: str) -> bool:
    """Whether a service of ours answers on this port of loopback that it is ready."""
    try:
        # Without a proxy, which Docker puts into the environment of every container where its users have one.
        with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/health/ready", timeout=TIMEOUT_SECONDS):
            return True
    except (OSError, HTTPException):
        return False


if __name__ == "__main__":
    sys.exit(not any(is_ready(os.environ.get(setting, port)) for setting, port in PORTS.items()))
