"""The gateway's probes. Live: the event loop runs. Ready: started and not draining.

No dependency decides readiness: a gateway accepts writes without Postgres, and serves reads without the broker.
"""

import asyncio
import json
from http import HTTPStatus

from gateway.http.operations import PUBLIC, Operations
from gateway.http.requests import OpenApi, Request
from gateway.http.responses import Response
from gateway.reads.errors import DatabaseUnavailableError
from gateway.resources import Gateway

PING_TIMEOUT_SECONDS = 1.0
STOPPING: OpenApi = {"description": "Stopping", "content": {"application/json": {}}}

operations: Operations[Gateway] = Operations("health")


@operations.add("GET", "/health/live", requires=PUBLIC, ignores_query=True)
async def live(_: Gateway, __: Request) -> Response:
    """Answers 200 while the event loop runs."""
    return Response('{"status":"live"}')


@operations.add(
    "GET",
    "/health/ready",
    requires=PUBLIC,
    ignores_query=True,
    responses={200: {"description": "Ready"}, 503: STOPPING},
)
async def ready(gateway: Gateway, _: Request) -> Response:
    """Answers 200 until the gateway drains; the body has the state of each dependency."""
    dependencies = {
        "broker": gateway.publisher.state,
        "database": "up" if await _has_database(gateway) else "down",
    }
    draining = gateway.replies.draining
    status, code = ("draining", HTTPStatus.SERVICE_UNAVAILABLE) if draining else ("ready", HTTPStatus.OK)
    return Response(json.dumps({"status": status, "dependencies": dependencies}), code)


async def _has_database(gateway: Gateway) -> bool:
    """Whether Postgres answers within a second."""
    try:
        async with asyncio.timeout(PING_TIMEOUT_SECONDS):
            await gateway.queries.ping()
    except (TimeoutError, DatabaseUnavailableError):
        return False
    return True
