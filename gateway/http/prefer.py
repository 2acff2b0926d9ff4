"""The `Prefer` header (RFC 7240): how the client prefers a write to be answered."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gateway.http.requests import OpenApi, Request, describe_header

MAX_WAIT_SECONDS = 30
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
"""A comma in quotes does not end a preference."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """A client's preferences; unknown and invalid ones are ignored, as the RFC requires."""

    respond_async: bool = False
    wait_seconds: int | None = None
    return_: str | None = None

    @property
    def minimal(self) -> bool:
        """Whether a successful response has no body."""
        return self.return_ == "minimal"

    def wait_or(self, default_seconds: float) -> float:
        """Return the seconds to wait for the outcome."""
        if self.wait_seconds is not None:
            return self.wait_seconds
        return 0.0 if self.respond_async else default_seconds

    def honor_wait(self, wait_seconds: float) -> "Preferences":
        """Return the honored preferences, without `wait` unless the client's wait was granted."""
        return self if wait_seconds == self.wait_seconds else replace(self, wait_seconds=None)

    def without_representation(self) -> "Preferences":
        """Return the honored preferences of a response without the representation."""
        return self if self.minimal else replace(self, return_=None)

    def build_header(self, status: int) -> dict[str, str]:
        """Return the `Preference-Applied` header of a response with this status; empty for errors."""
        honored = {200, 201, 204} if self.minimal else {200, 201}  # a 204 has no representation
        returned = self.return_ is not None and status in honored
        preferences = [
            *(["respond-async"] if self.respond_async and status == 202 else []),
            *([f"wait={self.wait_seconds}"] if self.wait_seconds is not None else []),
            *([f"return={self.return_}"] if returned else []),
        ]
        return {"Preference-Applied": ", ".join(preferences)} if preferences and status < 300 else {}


DEFAULTS = Preferences()


class Prefer:
    """Reads the `Prefer` header."""

    problems = ()

    async def read(self, request: Request) -> Preferences:
        """Return the client's preferences; the first of a repeated one wins."""
        header = request.join_header(b"prefer")
        if header is None:
            return DEFAULTS
        parsed = dict(reversed(list(_parse_preferences(header))))
        wait = parsed.get("wait", "")
        returned = parsed.get("return")
        return Preferences(
            respond_async=parsed.get("respond-async") == "",
            wait_seconds=min(int(wait), MAX_WAIT_SECONDS) if re.fullmatch(r"[0-9]{1,99}", wait) else None,
            return_=returned if returned in ("minimal", "representation") else None,
        )

    @property
    def openapi(self) -> OpenApi:
        """The header."""
        description = (
            "`respond-async`: 202 as soon as the write is accepted. `wait=N`: wait up to N seconds (0 to 30) for the "
            "outcome. `return=minimal`: no body in a successful response; `return=representation`: the note (default), "
            "if the credentials may read it."
        )
        schema = {"type": "string", "examples": ["respond-async", "wait=10"]}
        return {"parameters": [describe_header("Prefer", description, schema)]}


def _parse_preferences(header: str) -> Iterator[tuple[str, str]]:
    for preference in _PREFERENCE.findall(header):
        name, _, value = preference.partition(";")[0].partition("=")
        yield name.strip().lower(), value.strip().strip('"')


PREFER = Prefer()
