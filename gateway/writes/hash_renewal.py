"""Rehashes a user's password after a login if the stored hash is cheaper than the current parameters.

Runs in the background; the next login retries after a failure. The new hash is sent in a command, which the worker
rejects if the password has changed meanwhile.
"""

import asyncio

import structlog
from pydantic import SecretStr

from gateway.auth.passwords import Passwords
from gateway.caller import Caller
from gateway.problems import ProblemError
from gateway.reads.results import Login
from gateway.writes.publisher import NotAcceptedError, UnconfirmedError
from gateway.writes.submission import Submission
from shared.contracts import RenewedHash, RenewHash

log = structlog.get_logger()


class HashRenewal:
    """Renews password hashes, at most one per user at a time."""

    def __init__(self, passwords: Passwords, submission: Submission) -> None:
        self._passwords = passwords
        self._submission = submission
        self._renewing: dict[int, asyncio.Task[None]] = {}
        """By owner."""

    def begin(self, login: Login, password: SecretStr) -> None:
        """Start renewing the hash of a user who has signed in with this password, if it is too cheap."""
        if not self._passwords.is_too_cheap(login.password_hash or "") or login.owner in self._renewing:
            return
        self._renewing[login.owner] = asyncio.create_task(self._renew(login, password))
        self._renewing[login.owner].add_done_callback(lambda _: self._renewing.pop(login.owner))

    def close(self) -> None:
        """Cancel the renewals in progress."""
        for task in self._renewing.values():
            task.cancel()

    async def _renew(self, login: Login, password: SecretStr) -> None:
        try:
            data = RenewedHash(password_hash=await self._passwords.hash(password))
            await self._submission.publish(Caller(login.owner, login.credentials_version), RenewHash, data)
        except (ProblemError, NotAcceptedError, UnconfirmedError) as error:
            log.info("password hash not renewed; the next login retries", error=type(error).__name__)
