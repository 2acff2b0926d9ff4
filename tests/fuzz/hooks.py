"""Credentials for what changes or deletes the account: somebody new's, or nothing else could be asked after it."""

from typing import Any
from uuid import uuid4

import httpx
import schemathesis

from tests.support.canaries import PASSWORD


@schemathesis.auth(refresh_interval=None).apply_to(path="/users/me", method=["PATCH", "DELETE"])
class SomebodyNew:
    """A user for one case."""

    def get(self, case: Any, _: Any) -> str:
        """An access token of theirs."""
        name = f"fuzz-{uuid4()}"
        with httpx.Client(base_url=case.operation.base_url) as client:
            client.post("/users", json={"name": name, "password": PASSWORD}).raise_for_status()
            answer = client.post("/auth/token", data={"username": name, "password": PASSWORD})
        return str(answer.raise_for_status().json()["access_token"])

    def set(self, case: Any, data: str, _: Any) -> None:
        """Signs the case with it."""
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}
