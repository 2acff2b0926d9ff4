"""The gateway's application: FastAPI declares the operations and owns the lifespan, the front answers requests."""

import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gateway.api import changes, commands, health, tokens, users, versions
from gateway.api.docs import build_docs_operations
from gateway.api.document import DESCRIPTION, TAGS, build_security_schemes
from gateway.api.notes import build_note_operations
from gateway.api.transfer import build_transfer_operations
from gateway.api.trash import build_trash_operations
from gateway.http.front import Front
from gateway.http.openapi import build_operation_id, check_served, declare, extend_document
from gateway.http.operations import Operation
from gateway.problems import MISDIRECTED_REQUEST
from gateway.resources import Gateway, open_resources
from gateway.settings import GatewaySettings
from shared import __version__
from shared.logs import configure_logging
from shared.settings import load_settings
from shared.tracing import configure_tracing

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class GatewayApp(FastAPI):
    """A FastAPI app whose front handles the requests, instead of FastAPI's own layers."""

    front: Front[Gateway]
    entrance: ASGIApp
    """The front, inside the middleware for trusted proxies if there are any."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass requests to the front, and the lifespan to FastAPI."""
        if scope["type"] == "http":
            await self.entrance(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: GatewaySettings | None = None) -> GatewayApp:
    """Create a gateway; it starts without Postgres or the broker, and meanwhile serves what it can."""
    if settings is None:
        settings = load_settings(GatewaySettings)
        configure_logging(settings, "inkwell-gateway")
        configure_tracing("inkwell-gateway")

    @asynccontextmanager
    async def lifespan(app: GatewayApp) -> AsyncIterator[None]:
        check_served(app)
        async with open_resources(settings) as gateway:
            app.front.resources = gateway
            # Exempts the app's many long-lived objects: scanning them in each full collection would pause requests.
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 50, 50)
            yield

    app = GatewayApp(
        title="Async Notes API",
        version=__version__,
        summary="Notes whose accepted writes survive the crash of any process",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        servers=[{"url": settings.prefix}] if settings.prefix else None,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=build_operation_id,
    )
    operations = collect_operations(settings)
    for operation in operations:
        declare(app, operation)
    extend_document(app, build_security_schemes(settings.prefix) if settings.auth == "password" else None)
    app.front = Front(
        [*operations, *(build_docs_operations(app, settings.prefix) if settings.docs else ())],
        root_path=settings.prefix,
        body_limit_bytes=settings.body_limit_bytes,
        hosts=(*LOOPBACK_HOSTS, settings.host) if settings.is_loopback_only else (),
        cors_origins=settings.cors_origins,
    )
    app.entrance = app.front
    if proxies := [str(proxy) for proxy in settings.trusted_proxies]:
        app.entrance = cast("ASGIApp", ProxyHeadersMiddleware(cast("ASGI3Application", app.front), proxies))
    return app


def collect_operations(settings: GatewaySettings) -> Sequence[Operation[Gateway]]:
    """Return the operations that a gateway with these settings serves and documents."""
    account = (*users.operations, *tokens.operations) if settings.auth == "password" else ()
    of_notes = (
        *build_note_operations(settings),
        *changes.operations,
        *build_trash_operations(settings),
        *versions.operations,
        *build_transfer_operations(settings),
    )
    operations = [*of_notes, *commands.operations, *account, *health.operations]
    if settings.is_loopback_only:
        return [replace(each, problems=(*each.problems, MISDIRECTED_REQUEST)) for each in operations]
    return operations
