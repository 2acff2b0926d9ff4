"""The rigs: the servers of a run and the faults that it injects into them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from tests.faults import broker_nodes, clocks, postgres_pair
from tests.faults.nemesis import FAULTS, Fault
from tests.faults.servers import single_servers


@dataclass(frozen=True)
class Rig:
    """Servers, which know how to repair themselves, and faults."""

    servers: Callable[[], AbstractAsyncContextManager[Any]]
    faults: Mapping[str, Fault]


RIGS: Mapping[str, Rig] = {
    "single": Rig(single_servers, FAULTS),
    "clocks": Rig(clocks.clocked_servers, clocks.FAULTS),
    "postgres-pair": Rig(postgres_pair.postgres_pair, postgres_pair.FAULTS),
    "broker-nodes": Rig(broker_nodes.broker_nodes, broker_nodes.FAULTS),
}
