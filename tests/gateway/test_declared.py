"""The gateway may not declare the queues: it waits until a worker has done so."""

import aio_pika
import httpx

from dev.backend import Services
from gateway.settings import GatewaySettings
from shared.messaging import Topology
from shared.tables import IMPLICIT_OWNER
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from worker.settings import WorkerSettings


def impatient(settings: GatewaySettings) -> GatewaySettings:
    return GatewaySettings.model_validate(settings.model_dump() | {"publish_timeout_seconds": 0.5})


async def test_writes_are_refused_until_a_worker_has_declared_the_queues(
    servers: Services, gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    await harness.delete(servers, Topology.of(gateway_settings))

    async with harness.gateway(impatient(gateway_settings)) as client:
        refused = await client.post("/notes", json=NOTE | {"title": "refused"})
        ready = (await client.get("/health/ready")).json()
        async with harness.worker(worker_settings):
            await eventually(lambda: is_created(client), within_seconds=5)
            notes = (await client.get("/notes")).json()

    assert (refused.status_code, refused.json()["code"]) == (503, "not_accepted")
    assert ready["dependencies"]["broker"] == "down"
    assert [note["title"] for note in notes] == ["Ink"]


async def test_write_whose_queue_is_gone_is_refused_and_others_are_not(
    servers: Services, gateway_settings: GatewaySettings
) -> None:
    topology = Topology.of(gateway_settings)
    async with harness.gateway(gateway_settings) as client:
        assert (await client.post("/notes", json=NOTE, headers={"Prefer": "respond-async"})).status_code == 202
        await harness.delete_queue(servers, topology.command_queue(topology.partition_of(IMPLICIT_OWNER)))
        refused = await client.post("/notes", json=NOTE)
        await harness.declare(servers, topology)
        accepted = await client.post("/notes", json=NOTE, headers={"Prefer": "respond-async"})

    assert (refused.status_code, refused.json()["code"]) == (503, "not_accepted")
    assert accepted.status_code == 202


async def test_deleted_exchange_is_declared_again(
    servers: Services, client: httpx.AsyncClient, gateway_settings: GatewaySettings
) -> None:
    await eventually(lambda: is_created(client))
    async with await aio_pika.connect(servers.broker_url) as connection:
        await (await connection.channel()).exchange_delete(Topology.of(gateway_settings).commands_exchange)

    assert (await client.post("/notes", json=NOTE)).status_code in {503, 504}
    await eventually(lambda: is_created(client), within_seconds=30)


async def is_created(client: httpx.AsyncClient) -> bool:
    return (await client.post("/notes", json=NOTE)).status_code == 201
