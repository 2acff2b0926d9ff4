"""Passwords: Argon2id with RFC 9106's second recommended parameters (64 MiB), computed off the event loop."""

import asyncio
import os
import sys
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import VerificationError
from pydantic import SecretStr

from gateway.problems import OVERLOADED, ProblemError, build_retry_after
from shared.contracts import is_affordable_hash

DUMMY_HASH = "$argon2id$v=19$m=65536,t=3,p=4$bm9ib2R5IGhhcyBpdC4uLg$bm8gcGFzc3dvcmQgaGFzaGVzIHRvIHRoaXMgdmFsdWU"
"""Verified against if the user does not exist, so that the response takes the same time."""
WAITING_LIMIT = 50
WAIT_TIMEOUT_SECONDS = 5.0
"""How long to wait for a thread; hashing itself has no timeout, since it is slow on a busy host."""
NICENESS = 10
PASSWORD_MAX_LENGTH = 128
MAX_DECOMPOSED_LENGTH = 4 * PASSWORD_MAX_LENGTH
"""The longest password before composition (NFC): a composed character decomposes into at most four."""
T = TypeVar("T")


class Passwords:
    """Hashes and verifies one password per processor at a time; a limited number wait, others are rejected."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        processors = os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(processors, "passwords", initializer=_lower_priority)
        self._free_threads = asyncio.Semaphore(processors)
        self._waiting = 0

    async def hash(self, password: SecretStr, salt: bytes | None = None) -> str:
        """Hash a password, with a random salt unless one is given; raises ProblemError 503."""
        return await self._run(lambda: self._hasher.hash(_normalize(password), salt=salt))

    async def verify(self, password: SecretStr, password_hash: str | None) -> bool:
        """Whether the password has this hash; None takes the same time. Raises ProblemError 503."""
        if len(password) > MAX_DECOMPOSED_LENGTH:  # composing a long text takes quadratic time
            password = SecretStr("")
            password_hash = None
        return await self._run(lambda: self._matches(password, password_hash or DUMMY_HASH))

    def is_too_cheap(self, password_hash: str) -> bool:
        """Whether the hash is cheaper than the current parameters."""
        cost = extract_parameters(password_hash)
        return cost.memory_cost * cost.time_cost < self._hasher.memory_cost * self._hasher.time_cost

    def _matches(self, password: SecretStr, password_hash: str) -> bool:
        """Whether the password has this hash; a hash costlier than Inkwell's own is never computed."""
        is_affordable = is_affordable_hash(password_hash)
        try:
            self._hasher.verify(password_hash if is_affordable else DUMMY_HASH, _normalize(password))
        except VerificationError:
            return False
        return is_affordable

    async def _run(self, work: Callable[[], T]) -> T:
        await self._wait_for_thread()
        hashing = asyncio.get_running_loop().run_in_executor(self._threads, work)
        hashing.add_done_callback(lambda _: self._free_threads.release())
        # A thread cannot be stopped: it remains in use even if the client has disconnected.
        return await asyncio.shield(hashing)

    async def _wait_for_thread(self) -> None:
        if self._waiting >= WAITING_LIMIT:
            raise ProblemError(OVERLOADED, headers=build_retry_after())
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_TIMEOUT_SECONDS):
                await self._free_threads.acquire()
        except TimeoutError:
            raise ProblemError(OVERLOADED, headers=build_retry_after()) from None
        finally:
            self._waiting -= 1


def _lower_priority() -> None:
    """Lower the priority of this thread and those that Argon2 starts from it: a hash takes whole processors."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _normalize(password: SecretStr) -> str:
    """Return the password in Unicode NFC: keyboards differ in how they compose characters."""
    return unicodedata.normalize("NFC", password.get_secret_value())
