"""The gateway as it is, but for the owner, whom a header names: so one run can have many of them."""

from gateway import dependencies

# Before the routes import it; mypy minds the name of a parameter that is not used.
dependencies.owner_of = lambda request: int(request.headers["x-owner"])  # type: ignore[assignment]

from gateway.app import create_app  # noqa: E402 - for the line above

__all__ = ["create_app"]
