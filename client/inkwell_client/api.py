"""Requests to Inkwell's API: which responses are errors, which requests are retried, and for how long."""

import random
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import httpx

from inkwell_client.credentials import Credentials
from inkwell_client.errors import ClientError, UnavailableError

TIMEOUT_SECONDS = 60.0
"""Longer than an import waits for an outcome, and than the interval of a stream's heartbeats."""
RETRY_SECONDS = 300.0
MAX_PAUSE_SECONDS = 10.0
RETRIED = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def connect(credentials: Credentials) -> httpx.Client:
    """Return a client for the deployment."""
    headers = {"Authorization": f"Bearer {credentials.token}"} if credentials.token else {}
    return httpx.Client(base_url=credentials.url, headers=headers, timeout=TIMEOUT_SECONDS)


def check(response: httpx.Response) -> None:
    """Raise UnavailableError if the request should be retried, and ClientError for any other failure."""
    if response.is_success:
        return
    response.read()
    reason = describe(response)
    if response.status_code in RETRIED:
        retry_after = response.headers.get("retry-after", "")
        raise UnavailableError(reason, float(retry_after) if retry_after.isdecimal() else 0.0)
    raise ClientError(reason)


def check_problem(problem: dict[str, Any] | None) -> None:
    """Raise the error for a problem within a stream, as `check` does for a response; does nothing for None."""
    if problem is None:
        return
    reason = f"{problem['code']}: {problem['detail']}"
    if problem["status"] in REFUSED:
        raise ClientError(f"{reason}; sign in again with `inkwell login URL`, then repeat the command: it continues")
    if problem["status"] in RETRIED:
        raise UnavailableError(reason)
    raise ClientError(reason)


def iter_lines(response: httpx.Response) -> Iterator[str]:
    """Yield the whole lines of a response: httpx would also split them at Unicode separators, which notes may contain.

    Raises httpx.TransportError.
    """
    rest = b""
    for part in response.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode()


def describe(response: httpx.Response) -> str:
    """Return what an error response says, in one line."""
    try:
        problem = response.json()
        return f"{problem['code']}: {problem['detail']}"
    except (ValueError, TypeError, KeyError):
        return f"{response.request.url} answers {response.status_code} {response.reason_phrase}"


class RetryPolicy:
    """Pauses between attempts, until none has succeeded for RETRY_SECONDS."""

    def __init__(self, seconds: float = RETRY_SECONDS) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Reset the deadline and the pauses after a success."""
        self._ends_at = time.monotonic() + self._seconds
        self._pause_seconds = 0.5

    def pause(self, error: Exception) -> None:
        """Wait before the next attempt; raises ClientError once the deadline has passed."""
        reason = str(error) or type(error).__name__
        if time.monotonic() > self._ends_at:
            raise ClientError(
                f"{reason}; gave up after {self._seconds:.0f} s, repeat the command to continue"
            ) from None
        sys.stderr.write(f"{reason} (trying again)\n")
        asked = error.retry_after_seconds if isinstance(error, UnavailableError) else 0.0
        time.sleep(max(self._pause_seconds * random.uniform(1, 1.5), asked))  # noqa: S311 - no secret
        self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)
