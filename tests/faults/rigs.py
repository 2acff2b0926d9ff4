"""The rigs: the servers of a run and the faults that it injects into them."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.faults import broker_nodes, postgres_pair
from tests.faults.nemesis import FAULTS, Fault, clocks
from tests.faults.nemesis.catalogue import OF_ONE_NODE
from tests.faults.servers import Servers, clocks_folder, single_broker, single_postgres


@asynccontextmanager
async def servers(*, has_standby: bool, has_nodes: bool) -> AsyncIterator[Servers[Any, Any]]:
    """A Postgres with or without a standby, and a RabbitMQ of one or three nodes, for the block."""
    async with AsyncExitStack() as exits:
        postgres, rabbitmq = (
            await exits.enter_async_context(postgres_pair.postgres_pair())
            if has_standby
            else exits.enter_context(single_postgres()),
            await exits.enter_async_context(broker_nodes.broker_nodes())
            if has_nodes
            else exits.enter_context(single_broker()),
        )
        yield Servers(postgres, rabbitmq, exits.enter_context(clocks_folder()))


@dataclass(frozen=True)
class Rig:
    """Servers, which know how to repair themselves, and faults."""

    servers: Callable[[], AbstractAsyncContextManager[Servers[Any, Any]]]
    faults: Mapping[str, Fault]


CLUSTERS = {name: fault for name, fault in FAULTS.items() if name not in OF_ONE_NODE}
RIGS: Mapping[str, Rig] = {
    "single": Rig(lambda: servers(has_standby=False, has_nodes=False), FAULTS),
    "clusters": Rig(
        lambda: servers(has_standby=True, has_nodes=True), CLUSTERS | postgres_pair.FAULTS | broker_nodes.FAULTS
    ),
    "postgres-pair": Rig(lambda: servers(has_standby=True, has_nodes=False), postgres_pair.FAULTS),
    "broker-nodes": Rig(lambda: servers(has_standby=False, has_nodes=True), broker_nodes.FAULTS),
    "clocks": Rig(lambda: servers(has_standby=False, has_nodes=False), clocks.ALONE),
}
