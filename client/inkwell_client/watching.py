"""Follows the changes of notes as a stream of events (SSE), and resumes after the last one if the stream ends."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

import httpx

from inkwell_client.api import RetryPolicy, check, iter_lines
from inkwell_client.errors import UnavailableError

EVENT_STREAM = "text/event-stream"


class CursorGoneError(Exception):
    """The changes after a cursor are no longer known."""


@dataclass(frozen=True)
class Event:
    """An event of a stream."""

    id: str
    """The last id in the stream so far; empty if there was none."""
    type: str
    data: str


def iter_events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events in a stream's lines, as the HTML standard defines them; comments are skipped."""
    last_id = event_type = ""
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Event(last_id, event_type or "message", "\n".join(data))
            event_type, data = "", []
        elif name == "id":
            last_id = value
        elif name == "event":
            event_type = value
        elif name == "data":
            data.append(value)


def iter_changes(client: httpx.Client, policy: RetryPolicy) -> Iterator[str]:
    """Yield each change as JSON, from the first one on, without end; raises ClientError."""
    cursor = ""
    while True:
        error: Exception = UnavailableError("the stream ended")
        try:
            for event in iter_stream(client, cursor, policy):
                cursor = event.id
                if event.type == "change":
                    yield event.data
        except CursorGoneError:
            sys.stderr.write("the changes after the last one are gone; starting over from the first note\n")
            cursor = ""
            continue
        except (httpx.TransportError, UnavailableError) as caught:
            error = caught
        policy.pause(error)


def iter_stream(client: httpx.Client, cursor: str, policy: RetryPolicy) -> Iterator[Event]:
    """Yield the events after the cursor until the stream ends; raises CursorGoneError if they are not kept."""
    headers = {"Accept": EVENT_STREAM} | ({"Last-Event-ID": cursor} if cursor else {})
    with client.stream("GET", "/notes/changes", headers=headers) as response:
        if cursor and response.status_code == HTTPStatus.GONE:
            raise CursorGoneError
        check(response)
        yield from iter_events(reset_at_each(iter_lines(response), policy))


def reset_at_each(lines: Iterable[str], policy: RetryPolicy) -> Iterator[str]:
    """Yield the lines; each is a success, since a stream without changes has only heartbeats."""
    for line in lines:
        policy.reset()
        yield line
