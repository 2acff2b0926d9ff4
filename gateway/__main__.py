"""Runs a gateway: `python -m gateway`."""

import signal

import uvicorn

from gateway.app import create_app
from gateway.settings import GatewaySettings
from shared.settings import load_settings
from shared.telemetry import configure_logging


def main() -> None:
    """Serves until SIGTERM or SIGINT; exits with 2 for a wrong setting."""
    settings = load_settings(GatewaySettings)
    configure_logging(settings, "inkwell-gateway")
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_timeout_seconds),
    )
    # uvicorn raises the signal again when it has stopped; a graceful stop is to exit with 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
