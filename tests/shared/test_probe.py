"""The image's health check, run as Docker runs it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tests.support.proxy import free_port


@contextmanager
def answering(status: HTTPStatus) -> Iterator[int]:
    """A server on a port of loopback that gives this response to every request, also as a proxy."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def is_healthy(port: int, **environment: str) -> bool:
    ports = {"INKWELL_PORT": str(port), "INKWELL_WORKER_HEALTH_PORT": str(free_port())}
    command = [sys.executable, "-m", "shared.probe"]
    return subprocess.run(command, env=os.environ | ports | environment, check=False).returncode == 0


@pytest.mark.parametrize(("status", "expected"), [(HTTPStatus.OK, True), (HTTPStatus.SERVICE_UNAVAILABLE, False)])
def test_health_is_what_the_service_says_and_not_what_a_proxy_does(status: HTTPStatus, expected: object) -> None:
    others = HTTPStatus.SERVICE_UNAVAILABLE if expected else HTTPStatus.OK

    with answering(status) as port, answering(others) as proxy:
        assert is_healthy(port) is expected
        assert is_healthy(port, http_proxy=f"http://127.0.0.1:{proxy}") is expected


def test_probe_fails_if_nothing_answers() -> None:
    assert not is_healthy(free_port())
