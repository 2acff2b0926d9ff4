"""Rehashes a user's password after a login if the stored hash is cheaper than the current parameters.

Runs in the background; a failure is retried at the next login. The new hash travels as a command, which the worker
rejects if the password has changed meanwhile.
"""

import asyncio
from uuid import uuid4

import structlog
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from gateway.auth.passwords import Passwords
from gateway.problems import ProblemError
from gateway.reads.queries import Login
from gateway.writes.publisher import NotAcceptedError, Publisher, UnconfirmedError
from gateway.writes.replies import Replies
from shared.clock import Clock
from shared.contracts import RenewedHash, RenewHash

log = structlog.get_logger()


class HashRenewal:
    """Renews password hashes, at most one per user at a time."""

    def __init__(self, passwords: Passwords, publisher: Publisher, replies: Replies, clock: Clock) -> None:
        self._passwords = passwords
        self._publisher = publisher
        self._replies = replies
        self._clock = clock
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
            command = RenewHash(
                id=uuid7(),
                time=self._clock.now(),
                may_expire=self._clock.is_synchronized or None,
                owner=login.owner,
                credentials_version=login.credentials_version,
                fingerprint=uuid4().hex,  # unique: no request repeats it
                attempt_id=uuid4(),
                data=data,
            )
            with self._replies.expect(command) as attempt:
                await self._publisher.publish(attempt)
        except (ProblemError, NotAcceptedError, UnconfirmedError) as error:
            log.info("password's hash not renewed; the next login tries again", error=type(error).__name__)
