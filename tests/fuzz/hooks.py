"""Bodies of lines, and credentials for operations that change or delete the account.

These are a new user's, so that later cases still work.
"""

import json
from typing import Any
from uuid import uuid4

import httpx
import schemathesis

from tests.support.canaries import PASSWORD


@schemathesis.serializer("application/x-ndjson")
def serialize_lines(_: Any, drawn: Any) -> bytes:
    """The lines of an import; what is no text becomes a line of JSON."""
    return (drawn if isinstance(drawn, str) else json.dumps(drawn, default=str)).encode(errors="replace")


@schemathesis.auth(refresh_interval=None).apply_to(path="/users/me", method=["PATCH", "DELETE"])
class SomebodyNew:
    """A new user for one case."""

    def get(self, case: Any, _: Any) -> str:
        """The user's access token."""
        name = f"fuzz-{uuid4()}"
        with httpx.Client(base_url=case.operation.base_url) as client:
            client.post("/users", json={"name": name, "password": PASSWORD}).raise_for_status()
            response = client.post("/auth/token", data={"username": name, "password": PASSWORD})
        return str(response.raise_for_status().json()["access_token"])

    def set(self, case: Any, data: str, _: Any) -> None:
        """Sets the token on the case."""
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}
