"""The gateway's application: a factory, and a lifespan that owns every resource."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gateway import health
from gateway.access_tokens import AccessTokens
from gateway.authentication import BearerTokens, NobodySignsIn
from gateway.command_urls import CommandUrls
from gateway.conditions import Conditions
from gateway.dependencies import Gateway
from gateway.docs import install_docs
from gateway.errors import install_error_handlers
from gateway.hash_renewal import HashRenewal
from gateway.headers import install_headers
from gateway.metrics import install_metrics
from gateway.middleware import LOOPBACK_HOSTS, KnownHosts, LimitedBodies, LimitedHeads, UniformRequests
from gateway.note_bodies import ITEMS_LIMIT_BYTES, NoteBodies
from gateway.openapi import DESCRIPTION, EVERY, MISDIRECTED, TAGS, extend_document, operation_id
from gateway.passwords import Passwords
from gateway.publisher import Publisher
from gateway.queries import Queries
from gateway.replies import Replies
from gateway.routes import auth, commands, notes, users
from gateway.settings import GatewaySettings
from gateway.throttles import Throttles
from gateway.traces import install_traces
from shared.clock import Clock
from shared.messaging import SETUP_TIMEOUT_SECONDS
from shared.metrics import watch_loop
from shared.settings import load_settings
from shared.telemetry import configure_logging
from shared.tracing import configure_tracing


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """A gateway. It starts, and serves what it can, whether or not the broker and Postgres are there."""
    if settings is None:
        settings = load_settings(GatewaySettings)
        configure_logging(settings, "inkwell-gateway")
        configure_tracing("inkwell-gateway")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with resources(settings) as gateway:
            app.state.gateway = gateway
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 50, 50)
            yield

    app = FastAPI(
        title="Async Notes API",
        summary="Notes whose accepted writes are never lost",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # costs every request; there is our own
        responses=EVERY | (MISDIRECTED if settings.is_for_this_host_alone else {}),
        generate_unique_id_function=operation_id,
    )
    install_middleware(app, settings)
    install_error_handlers(app)
    install_routes(app, settings)
    return app


def install_middleware(app: FastAPI, settings: GatewaySettings) -> None:
    """What every request passes; the last one that is added is the first to see it."""
    app.add_middleware(
        LimitedBodies, limit_bytes=settings.body_limit_bytes, exceptions={"/notes/batch": ITEMS_LIMIT_BYTES}
    )
    app.add_middleware(LimitedHeads)
    app.add_middleware(UniformRequests)
    if settings.is_for_this_host_alone:
        app.add_middleware(KnownHosts, hosts=sorted({*LOOPBACK_HOSTS, settings.host}))
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(proxy) for proxy in settings.trusted_proxies])
    install_traces(app)
    install_headers(app, settings.cors_origins)
    install_metrics(app)


def install_routes(app: FastAPI, settings: GatewaySettings) -> None:
    """Every route, and what documents them."""
    has_users = settings.auth == "password"
    app.include_router(notes.reads)
    app.include_router(notes.writes_router(NoteBodies(settings), Conditions(settings)))
    app.include_router(commands.router)
    for router in (users.router, auth.router) if has_users else ():
        app.include_router(router)
    app.include_router(health.router)
    extend_document(app, settings.prefix, has_users=has_users)
    if settings.docs:
        install_docs(app, settings.prefix)


@asynccontextmanager
async def resources(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """The resources of one gateway; on leaving, what was handed to the publisher is drained first."""
    clock, queries = Clock(), Queries(settings)
    replies = Replies(queries.primary)
    publisher = Publisher(settings, replies, clock)
    publishing = asyncio.create_task(publisher.run())
    await queries.look_at(clock)
    watches = watch_loop(clock.report), queries.watch(), queries.keep_looking_at(clock)
    watching = [asyncio.create_task(each) for each in watches]
    access_tokens = AccessTokens(settings, clock)
    passwords = Passwords()
    hash_renewal = HashRenewal(passwords, publisher, replies, clock)
    signing_in = BearerTokens(access_tokens, queries, clock) if settings.auth == "password" else NobodySignsIn()
    try:
        yield Gateway(
            settings,
            clock,
            queries,
            publisher,
            replies,
            CommandUrls(settings),
            signing_in,
            access_tokens,
            passwords,
            hash_renewal,
            Throttles(settings),
            asyncio.Event(),
        )
    finally:
        hash_renewal.close()
        await publisher.drain(settings.publish_timeout_seconds)
        for task in (publishing, *watching):
            task.cancel()
        await asyncio.wait({publishing, *watching}, timeout=SETUP_TIMEOUT_SECONDS)
        queries.close()
