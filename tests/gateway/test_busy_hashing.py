"""Hashing passwords on a busy machine: which requests wait, which are rejected, and what always works."""

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr

from gateway.auth import passwords
from gateway.auth.passwords import Passwords
from gateway.problems import ProblemError
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import sign_up
from tests.support.canaries import PASSWORD
from tests.support.harness import eventually
from worker.settings import WorkerSettings

WAIT_SECONDS = 0.1
SECRET = SecretStr(PASSWORD)


class SlowHasher(PasswordHasher):
    """Finishes a hash when the test allows it, as on a busy host."""

    may_finish = threading.Event()
    started = 0

    def hash(self, *arguments: Any, **options: Any) -> str:
        SlowHasher.started += 1
        assert self.may_finish.wait(timeout=30)
        return super().hash(*arguments, **options)

    def verify(self, *arguments: Any, **options: Any) -> Any:
        SlowHasher.started += 1
        assert self.may_finish.wait(timeout=30)
        return super().verify(*arguments, **options)


@pytest.fixture
def slow_hasher(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SlowHasher]]:
    """Two hashing threads that the test can hold, and a waiting limit of a tenth of a second."""
    monkeypatch.setattr(SlowHasher, "may_finish", threading.Event())
    monkeypatch.setattr(SlowHasher, "started", 0)
    monkeypatch.setattr(passwords, "PasswordHasher", lambda: SlowHasher(time_cost=1, memory_cost=8, parallelism=1))
    monkeypatch.setattr(passwords, "WAIT_TIMEOUT_SECONDS", WAIT_SECONDS)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    yield SlowHasher
    SlowHasher.may_finish.set()


async def hashes(count: int, hasher: type[SlowHasher]) -> None:
    async def has_started() -> bool:
        return hasher.started >= count

    await eventually(has_started)


async def test_login_alone_succeeds_however_long_its_hash_takes(
    password_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    slow_hasher: type[SlowHasher],
) -> None:
    async with harness.worker(worker_settings), harness.gateway(password_settings) as client:
        slow_hasher.may_finish.set()
        ada = await sign_up(client)
        slow_hasher.may_finish.clear()
        hashed = slow_hasher.started

        login = asyncio.create_task(client.post("/auth/token", data={"username": ada.name, "password": PASSWORD}))
        await hashes(hashed + 1, slow_hasher)
        done, _ = await asyncio.wait({login}, timeout=5 * WAIT_SECONDS)
        slow_hasher.may_finish.set()

        assert not done
        assert (await login).status_code == httpx.codes.OK


async def test_password_that_finds_no_thread_in_time_is_refused(slow_hasher: type[SlowHasher]) -> None:
    pool = Passwords()
    busy = [asyncio.create_task(pool.hash(SECRET)) for _ in range(2)]
    await hashes(2, slow_hasher)

    with pytest.raises(ProblemError, match="overloaded"):
        await pool.hash(SECRET)

    slow_hasher.may_finish.set()
    assert all(await asyncio.gather(*busy))
    assert await pool.hash(SECRET)


async def test_password_beyond_the_bound_on_waiting_ones_is_refused_at_once(
    slow_hasher: type[SlowHasher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "WAIT_TIMEOUT_SECONDS", 30.0)
    monkeypatch.setattr(passwords, "WAITING_LIMIT", 3)
    pool = Passwords()
    busy = [asyncio.create_task(pool.hash(SECRET)) for _ in range(2)]
    await hashes(2, slow_hasher)
    waiting = [asyncio.create_task(pool.hash(SECRET)) for _ in range(3)]
    await asyncio.sleep(0)

    async with asyncio.timeout(1):
        with pytest.raises(ProblemError, match="overloaded"):
            await pool.hash(SECRET)

    slow_hasher.may_finish.set()
    assert all(await asyncio.gather(*busy, *waiting))


async def test_hash_whose_client_is_gone_keeps_its_thread_until_it_ends(slow_hasher: type[SlowHasher]) -> None:
    pool = Passwords()
    busy = [asyncio.create_task(pool.hash(SECRET)) for _ in range(2)]
    await hashes(2, slow_hasher)
    for each in busy:
        each.cancel()
    await asyncio.gather(*busy, return_exceptions=True)

    with pytest.raises(ProblemError, match="overloaded"):
        await pool.hash(SECRET)

    slow_hasher.may_finish.set()
    assert await pool.hash(SECRET)
    assert slow_hasher.started == 3
