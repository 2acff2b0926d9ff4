"""The faults of the default run, by name."""

import signal
from collections.abc import Callable, Mapping

from tests.faults.nemesis import broker, clocks, links, messages, operations, postgres
from tests.faults.nemesis.engine import Fault, gateways, workers
from tests.faults.nemesis.processes import all_are_restarted, all_workers_are_killed, ended, frozen

OF_ONE_NODE: Mapping[str, Fault] = {**broker.OF_ONE_NODE, "postgres-disk-full": postgres.disk_is_full}
"""What clusters of servers do not suffer, or in other ways."""
FAULTS: Mapping[str, Fault] = {
    "gateway-kill": ended(signal.SIGKILL, gateways),
    "gateway-stop": ended(signal.SIGTERM, gateways),
    "gateway-frozen": frozen(gateways),
    "worker-kill": ended(signal.SIGKILL, workers),
    "worker-stop": ended(signal.SIGTERM, workers),
    "worker-frozen": frozen(workers),
    "workers-kill": all_workers_are_killed,
    "rolling-restart": all_are_restarted,
    **operations.OF_TWO_VERSIONS,
    **clocks.FAULTS,
    **postgres.FAULTS,
    **operations.FAULTS,
    **OF_ONE_NODE,
    **broker.FAULTS,
    **links.FAULTS,
    **messages.FAULTS,
}
NEEDS: Mapping[str, Callable[[], bool]] = {
    **dict.fromkeys(operations.OF_TWO_VERSIONS, operations.has_history),
    **dict.fromkeys(clocks.FAULTS, clocks.has_libfaketime),
}
"""Faults that need something which a machine or a copy of the source may lack."""


def can_be_injected(name: str) -> bool:
    """Whether this machine has what the fault needs."""
    return name not in NEEDS or NEEDS[name]()
