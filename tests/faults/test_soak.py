"""The soak finds what grows, and nothing else; a short one works."""

import random

import pytest

from tests.faults.soak import Samples, judge, soak

MINUTES = 30
STEADY = {"MiB": 90.0, "files": 40.0, "tasks": 35.0}
GROWN = {"MiB": 2.5, "files": 4.0, "tasks": 4.0}
NOISE = {"MiB": 0.5, "files": 6.0, "tasks": 5.0}
"""Connections come and go."""


def samples(growth: dict[str, float], *, warm_up: float = 0.0) -> Samples:
    """Half an hour in which some figures grow evenly after ten minutes, and all of them while everything warms up."""
    noise, sampled = random.Random(1), Samples()  # noqa: S311 - no secret
    for second in range(0, MINUTES * 60, 5):
        judged, warming = max(0, second - 600) / 1200, min(1, second / 600)
        for kind, level in STEADY.items():
            value = level + growth.get(kind, 0.0) * judged + warm_up * warming
            sampled.add(kind, "gateway-1", second, value + noise.uniform(-1, 1) * NOISE[kind])
    return sampled


def test_steady_figures_have_not_grown() -> None:
    assert judge(samples({})) == []


def test_growth_while_everything_warms_up_does_not_count() -> None:
    assert judge(samples({}, warm_up=50)) == []


@pytest.mark.parametrize("kind", GROWN)
def test_growth_is_found_in_spite_of_noise(kind: str) -> None:
    [found] = judge(samples({kind: GROWN[kind]}))

    assert found.startswith(f"{kind} of gateway-1: +")


def test_memory_that_grows_by_less_than_two_mebibytes_is_flat() -> None:
    assert judge(samples({"MiB": 1.5})) == []


def test_memory_that_is_taken_for_a_moment_does_not_count() -> None:
    sampled = Samples()
    for number in range(MINUTES * 12):
        sampled.add("MiB", "gateway-1", number * 5, 90 + 64 * (number > 200 and number % 5 == 0))

    assert judge(sampled) == []


def test_one_connection_more_is_found() -> None:
    sampled = Samples()
    for second in range(0, MINUTES * 60, 5):
        sampled.add("sessions", "both services", second, 15 + (second > 1200))

    assert judge(sampled)


@pytest.mark.long
@pytest.mark.needs_docker
async def test_nothing_but_memory_grows_within_a_minute() -> None:
    sampled, verdict = await soak(1, seed=1, clients_per_owner=1)

    assert judge(sampled, judges_memory=False) == []
    assert sampled.values.keys() == {"MiB", "files", "threads", "tasks", "sessions", "objects"}
    assert verdict.commands > 100
