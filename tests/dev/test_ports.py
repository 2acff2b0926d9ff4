"""A port that is taken is reported before anything starts."""

import socket
import subprocess
import sys

import pytest

from dev.backend import ROOT, UnavailableError, require_free


def test_port_that_another_program_listens_on_is_named_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        with pytest.raises(UnavailableError, match=rf"cannot listen on port {port} .* `INKWELL_PORT=8001 make up`"):
            require_free(port)


@pytest.mark.needs_docker
def test_compose_starts_nothing_if_its_port_is_taken() -> None:
    script = "from dev import containers; containers.COMPOSE[2:2] = ['-p', 'taken']; containers.up(None)"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {"INKWELL_PORT": str(taken.getsockname()[1]), "PATH": "/usr/bin:/bin:/usr/local/bin"}

        result = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
        )

    assert "UnavailableError: cannot listen on port" in result.stderr
    assert "Container" not in result.stderr
