"""The changes of a user's notes after a position: a page, by long polling if wanted, or a stream of events."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from gateway.api.schemas import Changes
from gateway.http.event_streams import (
    EVENT_STREAM,
    HEADERS,
    HEARTBEAT,
    LAST_EVENT_ID,
    format_position,
    format_retry,
    prefers_event_stream,
)
from gateway.http.omittable import Omittable
from gateway.http.openapi import describe_response
from gateway.http.operations import Operations
from gateway.http.parameters import INTEGER, Parameters
from gateway.http.prefer import PREFER, Preferences
from gateway.http.requests import Request
from gateway.http.responses import Response, start_stream
from gateway.http.validation import build_header_problem
from gateway.problems import CHANGES_GONE, INVALID_HEADER, OVERLOADED, TOO_MANY_STREAMS, ProblemError
from gateway.reads.changes import CURSOR_MAX_LENGTH, ChangesCursor, ChangesPage
from gateway.reads.errors import DatabaseUnavailableError
from gateway.reads.followers import Follower
from gateway.resources import Gateway
from shared.contracts import Scope

HEARTBEAT_SECONDS = 15.0
STREAM_TRUST_SECONDS = 15.0
"""How old the last check of a stream's credentials may be when it reads."""

LAST_READ_SECONDS = 1.0
"""How long the read at the end of a wait may take."""


class ChangesQuery(BaseModel, extra="forbid", use_attribute_docstrings=True):
    """The query parameters for a page of changes."""

    since: Omittable[
        Annotated[
            ChangesCursor,
            BeforeValidator(ChangesCursor.parse),
            WithJsonSchema({"type": "string", "maxLength": CURSOR_MAX_LENGTH}),
        ]
    ] = None
    """The `cursor` of an earlier response; without it, the changes start from the beginning"""
    limit: Annotated[int, Field(ge=1, le=1000), INTEGER] = 100
    """The maximum number of changes to return"""


CHANGES_QUERY = Parameters(ChangesQuery, "query")
EVENTS = (
    "As `text/event-stream`: a `change` event for each, with its data as in `changes` and the cursor after it as `id`. "
    "Other blocks, without data, only set the `id` or the `retry` time."
)

operations: Operations[Gateway] = Operations("notes")


@operations.add(
    "GET",
    "/notes/changes",
    requires=Scope.READ,
    inputs=(CHANGES_QUERY, PREFER, LAST_EVENT_ID),
    returns=Changes,
    responses={
        200: describe_response(
            f"The changes after `since`, in the order of their revisions. {EVENTS}",
            "Preference-Applied",
            content={EVENT_STREAM: {"schema": {"type": "string"}}},
        )
    },
    problems=(CHANGES_GONE, INVALID_HEADER, OVERLOADED, TOO_MANY_STREAMS),
)
async def list_changes(gateway: Gateway, request: Request) -> Response:
    """Lists the notes that were changed or deleted since a position, each once and in its current state."""
    query = request[CHANGES_QUERY]
    since = query.since or ChangesCursor(request.caller.owner)
    if prefers_event_stream(request):
        since = _read_last_event_id(request) or since
        return await start_stream(_stream(gateway, request, since), EVENT_STREAM, HEADERS)
    preferences = request[PREFER]
    wait_seconds = gateway.submission.choose_wait(preferences) if preferences.wait_seconds else 0.0
    page = await gateway.queries.list_changes(request.caller, since, query.limit)
    if wait_seconds and not page.changes:
        page = await _wait_for_changes(gateway, request, page, wait_seconds)
    headers = Preferences(wait_seconds=preferences.wait_seconds).honor_wait(wait_seconds).build_header(200)
    return Response(page.json, headers=headers | {"Vary": "Accept"})


def _read_last_event_id(request: Request) -> ChangesCursor | None:
    """Return the position from which a stream is resumed, or None; raises ProblemError 400."""
    event_id = request[LAST_EVENT_ID]
    try:
        return ChangesCursor.parse(event_id) if event_id else None
    except ValueError:
        raise build_header_problem("Last-Event-ID", "the id of an event of GET /notes/changes") from None


async def _wait_for_changes(gateway: Gateway, request: Request, page: ChangesPage, wait_seconds: float) -> ChangesPage:
    """Return the next changes, or an empty page at the end of the wait; holds no connection meanwhile."""
    now = asyncio.get_running_loop().time
    deadline = now() + wait_seconds
    limit = request[CHANGES_QUERY].limit
    follow = gateway.followers.follow(request.caller.owner)
    with gateway.replies.count_poll(), follow as follower, suppress(TimeoutError):
        async with asyncio.timeout_at(deadline + LAST_READ_SECONDS):  # the next request gets what was not read
            while not page.changes:  # reads at once first: there may be a change since the page was read
                page = await gateway.followers.read(follower, request.caller, page.cursor, limit) or page
                if page.changes or now() >= deadline or gateway.followers.draining:
                    break
                await follower.wait(deadline)
    return page


async def _stream(gateway: Gateway, request: Request, since: ChangesCursor) -> AsyncGenerator[bytes]:
    """Yield an empty part, then all changes until credentials become invalid, changes are gone, or it drains.

    Raises ProblemError before the first part if the stream is refused.
    """
    now = asyncio.get_running_loop().time
    with gateway.followers.stream(request.caller.owner) as follower:
        page = await gateway.queries.list_changes(request.caller, since, request[CHANGES_QUERY].limit)
        yield b""
        yield format_retry() + (page.events or format_position(page.cursor.encoded))
        beat_at = now() + HEARTBEAT_SECONDS
        cursor = page.cursor
        may_have_more = True  # there may be changes since the page was read
        while not gateway.followers.draining:
            if not may_have_more:
                await follower.wait(beat_at)
            try:
                found = await _read_next(gateway, request, follower, cursor)
            except ProblemError:  # the client reconnects, and gets it as the response
                break
            cursor, may_have_more = (found.cursor, found.has_more) if found else (cursor, False)
            if found and found.changes:
                yield found.events
                beat_at = now() + HEARTBEAT_SECONDS
            elif now() >= beat_at:
                yield HEARTBEAT + format_position(cursor.encoded)
                beat_at = now() + HEARTBEAT_SECONDS
        yield format_retry()


async def _read_next(
    gateway: Gateway, request: Request, follower: Follower, since: ChangesCursor
) -> ChangesPage | None:
    """Return the next page, or None while Postgres is unavailable; raises ProblemError if the stream has to end."""
    authorization = request.headers_by_name.get(b"authorization")
    follower.start_read()
    try:
        await gateway.authentication.authenticate(authorization, confirm=False, trust_seconds=STREAM_TRUST_SECONDS)
    except DatabaseUnavailableError:  # the token may be revoked: the stream stays open, and shows nothing
        gateway.followers.wake_once_answered(follower)
        return None
    return await gateway.followers.read(follower, request.caller, since, request[CHANGES_QUERY].limit)
