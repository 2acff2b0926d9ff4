"""A cluster in which one part or another always fails keeps every promise."""

import os
from itertools import chain

import pytest

from tests.faults.nemesis import FAULTS, RECOVERY_LIMIT_SECONDS
from tests.faults.run import run
from tests.support.wrong_clocks import needs_libfaketime

FAULTS_SECONDS = float(os.environ.get("FAULTS_SECONDS", "40"))
TIMED = ("I7", "I8", "I9", "I11")
"""Other tests run beside this one, so durations prove nothing here; `make faults` judges them."""
DIED = "ended"
"""A process that ended unexpectedly, or not with exit code 0, is a failure whatever its durations."""
FEW_COMMANDS = 300
"""A run with fewer writes proves nothing."""
SEED = 1
QUICK = FAULTS.keys() - {"gateway-before", "repartition", "rollback", "rolling-restart"}
"""The others restart one service after the other, which takes half a minute beside other tests."""
SLOWER_SECONDS = 20.0
"""Recovery takes longer beside other tests; with RabbitMQ's default settings it takes a minute."""


@pytest.mark.needs_docker
async def test_promises_hold_while_everything_fails_now_and_then() -> None:
    verdict = await run(FAULTS_SECONDS, SEED, sorted(QUICK), clients_per_owner=1)

    assert not [each for each in verdict.violations if each.partition(":")[0] not in TIMED or DIED in each]
    assert verdict.commands > FEW_COMMANDS
    assert verdict.faults


@needs_libfaketime
@pytest.mark.long
@pytest.mark.needs_docker
async def test_promises_hold_while_a_clock_is_wrong() -> None:
    faults = ["worker-clock-month-ahead", "gateway-clock-month-behind"]

    verdict = await run(0, SEED, faults, rig="clocks", times=1, clients_per_owner=1)

    assert not [each for each in verdict.violations if each.partition(":")[0] not in TIMED or DIED in each]
    assert verdict.commands > FEW_COMMANDS
    assert len(verdict.faults) == len(faults)


@pytest.mark.long
@pytest.mark.needs_docker
async def test_promises_hold_while_a_node_of_the_broker_is_lost_or_cut_off() -> None:
    verdict = await run(0, SEED, ("leader-kill", "partition"), rig="broker-nodes", times=1, clients_per_owner=1)

    assert not [each for each in verdict.violations if each.partition(":")[0] not in TIMED or DIED in each]
    assert verdict.commands > FEW_COMMANDS
    assert max(chain(*verdict.recoveries.values())) < RECOVERY_LIMIT_SECONDS + SLOWER_SECONDS


@pytest.mark.long
@pytest.mark.needs_docker
async def test_promises_hold_while_the_release_changes_and_changes_back() -> None:
    verdict = await run(0, SEED, ("rollback", "repartition"), times=1, clients_per_owner=1)

    assert not [each for each in verdict.violations if each.partition(":")[0] not in TIMED or DIED in each]
    assert verdict.commands > FEW_COMMANDS


@pytest.mark.long
@pytest.mark.needs_docker
async def test_promises_hold_while_clusters_of_servers_lose_nodes() -> None:
    faults = ("primary-hang", "leader-kill", "standby-kill")

    verdict = await run(0, SEED, faults, rig="clusters", times=1, clients_per_owner=1)

    assert not [each for each in verdict.violations if each.partition(":")[0] not in TIMED or DIED in each]
    assert verdict.commands > FEW_COMMANDS


@pytest.mark.long
@pytest.mark.needs_docker
async def test_promises_hold_while_a_standby_takes_the_place_of_a_primary_that_hangs() -> None:
    verdict = await run(0, SEED, ["primary-hang"], rig="postgres-pair", times=1, clients_per_owner=1)

    assert not [each for each in verdict.violations if each.partition(":")[0] not in TIMED or DIED in each]
    assert verdict.faults == {"primary-hang": 1}
