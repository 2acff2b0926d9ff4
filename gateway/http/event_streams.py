"""Server-sent events (`text/event-stream`), as the HTML standard defines them, resumed by `Last-Event-ID`."""

import random

from fastapi.sse import format_sse_event

from gateway.http.media_types import prefers
from gateway.http.requests import OpenApi, Request, describe_header
from gateway.http.responses import JSON

EVENT_STREAM = "text/event-stream"
RETRY_MILLISECONDS = (1000, 5000)
HEARTBEAT = b": heartbeat\n\n"
HEADERS = {"X-Accel-Buffering": "no", "Vary": "Accept, Last-Event-ID"}
"""The first makes nginx pass on each event immediately."""


class LastEventId:
    """Reads `Last-Event-ID`, which a browser sends when it reconnects."""

    problems = ()

    async def read(self, request: Request) -> str | None:
        """Return the id of the last event that the client received, or None."""
        return (request.join_header(b"last-event-id") or "").strip() or None

    @property
    def openapi(self) -> OpenApi:
        """The header."""
        description = "To resume an event stream: the `id` of the last event received; takes precedence over `since`"
        return {"parameters": [describe_header("Last-Event-ID", description, {"type": "string"})]}


LAST_EVENT_ID = LastEventId()


def prefers_event_stream(request: Request) -> bool:
    """Whether the client prefers a stream of events to a response in JSON."""
    return prefers(request, EVENT_STREAM, JSON)


def format_event(name: str, event_id: str, data: str) -> bytes:
    """Return an event."""
    return format_sse_event(event=name, data_str=data, id=event_id)


def format_position(event_id: str) -> bytes:
    """Return a block without an event, which only sets the id with which the client resumes."""
    return format_sse_event(id=event_id)


def format_retry() -> bytes:
    """Return the delay before the client reconnects: random, so that clients do not all reconnect at once."""
    return format_sse_event(retry=random.randint(*RETRY_MILLISECONDS))  # noqa: S311 - spreads load
