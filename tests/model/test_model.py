"""Whatever two users do, in whatever order, each response is that of a simple model."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from itertools import count
from random import SystemRandom
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from dev.backend import Services
from tests.model.machine import Requests
from tests.support import harness
from tests.support.isolation import SIGNING_IN, fresh_database, fresh_prefix, settings_of_gateway, settings_of_worker

STEPS = int(os.environ.get("MODEL_STEPS", "500"))
NEW_SEED = os.environ.get("PROOF_SEED") or SystemRandom().randrange(2**32)
SEED = int(NEW_SEED) if "MODEL_STEPS" in os.environ else None
"""The everyday run takes the same steps each time."""
STEPS_OF_EXAMPLE = 50
PATIENT = {"wait_seconds": 30, "publish_timeout_seconds": 30, "read_timeout_seconds": 30}
"""A busy machine must not fail the test."""
LIMITS = httpx.Limits(keepalive_expiry=30)
"""Shorter than the gateways', so that no request is sent on a connection that is being closed."""


@pytest.fixture
async def gateways(servers: Services, template: str) -> AsyncIterator[list[str]]:
    """The URLs of two gateways, whose writes one worker applies."""
    async with AsyncExitStack() as exits:
        url = await exits.enter_async_context(fresh_database(servers, template))
        prefix = await exits.enter_async_context(fresh_prefix(servers))
        await exits.enter_async_context(harness.worker(settings_of_worker(servers, url, prefix)))
        settings = settings_of_gateway(servers, url, prefix, **SIGNING_IN | PATIENT)
        clients = [await exits.enter_async_context(harness.gateway(settings)) for _ in range(2)]
        yield [str(client.base_url) for client in clients]


@pytest.mark.timeout(3600)
async def test_each_response_is_that_of_the_model(gateways: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if SEED is not None:
        with capsys.disabled():
            sys.stdout.write(f"{STEPS} steps beside the model with seed {SEED}\n")
    steps = count()
    chosen = settings(
        max_examples=STEPS // STEPS_OF_EXAMPLE,
        stateful_step_count=STEPS_OF_EXAMPLE,
        derandomize=SEED is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def run() -> None:
        with ExitStack() as exits:
            clients = [exits.enter_context(httpx.Client(base_url=url, timeout=60, limits=LIMITS)) for url in gateways]
            machine: Any = partial(Requests, clients, partial(next, steps))
            run_state_machine_as_test(seed(SEED)(machine) if SEED is not None else machine, settings=chosen)

    await asyncio.to_thread(run)

    assert next(steps) >= STEPS
