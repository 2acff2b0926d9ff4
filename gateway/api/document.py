"""The general parts of the OpenAPI document."""

from gateway.http.requests import OpenApi
from shared.contracts import Scope

DESCRIPTION = """\
A write is answered with its outcome, or with 202 and the URL of its command. Every error is a problem (RFC 9457);
its `code` is stable, `title` and `detail` are for people. An unknown path is 404 `not_found`, an unsupported method
405 `method_not_allowed` with `Allow`, and a request that is not valid HTTP 400 `bad_request`. An unknown query
parameter is 422 `validation_failed`; only the probes ignore it.

Every path works with and without a trailing slash, and HEAD works wherever GET does. `Cache-Control` says which
responses may be stored; a response with a token never may.
"""

TAGS = [
    {"name": "notes", "description": "The caller's notes: single ones, batches, lists and searches"},
    {"name": "commands", "description": "The outcome of a write that was answered with 202 or 504"},
    {"name": "users", "description": "Registration, and the caller's account"},
    {"name": "tokens", "description": "Access tokens for a name and a password, and personal tokens for scripts"},
    {"name": "health", "description": "Probes"},
]


def build_security_schemes(root_path: str) -> OpenApi:
    """Return the security schemes of a deployment with users, served below `root_path`."""
    flow = {
        "tokenUrl": f"{root_path}/auth/token",
        "scopes": {
            Scope.READ.value: "Read notes",
            Scope.WRITE.value: "Write notes and poll for outcomes; without `notes:read`, responses contain no notes",
            Scope.ACCOUNT.value: "Change the account and its personal tokens",
        },
    }
    return {
        "password": {
            "type": "oauth2",
            "description": "An access token for a name and a password",
            "flows": {"password": flow},
        },
        "personalToken": {"type": "http", "scheme": "bearer", "description": "A personal token, for scripts"},
    }
