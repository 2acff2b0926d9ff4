"""`python -m gateway doctor` and `python -m worker doctor`: their findings in a deployment with one defect."""

import asyncio
import json
from typing import Any

import aio_pika
import pytest
from asyncpg import Connection, Record
from pamqp.common import FieldTable

from dev.backend import Services
from gateway.doctor import examine as examine_gateway
from gateway.settings import GatewaySettings
from shared.broker import open_connection
from shared.broker_metrics import NodeMetrics
from shared.contracts import BadCommand
from shared.doctor import Level, check_partition
from shared.topology import Topology
from tests.shared.test_addresses import silent_server
from tests.support import harness
from tests.support.commands import create
from worker.apply import apply_batch
from worker.doctor import examine as examine_worker
from worker.settings import WorkerSettings

Printed = pytest.CaptureFixture[str]
NOWHERE = {"database_url": "postgresql://nobody:nothing@127.0.0.1:1/n", "broker_url": "amqp://n:n@127.0.0.1:1/"}


async def gateway_findings(settings: GatewaySettings, printed: Printed) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the findings by subject."""
    code = await examine_gateway(settings, as_json=True)
    return code, by_check(printed)


async def worker_findings(settings: WorkerSettings, printed: Printed) -> tuple[int, dict[str, dict[str, Any]]]:
    code = await examine_worker(settings, as_json=True)
    return code, by_check(printed)


def by_check(printed: Printed) -> dict[str, dict[str, Any]]:
    lines = printed.readouterr().out.splitlines()
    findings = [json.loads(line) for line in lines if line.startswith("{")]  # log lines may precede them
    return {finding["check"]: finding for finding in findings}


def find_problems(findings: dict[str, dict[str, Any]]) -> set[str]:
    return {check for check, finding in findings.items() if finding["level"] != "ok"}


async def test_nothing_is_wrong_with_what_runs(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, capsys: Printed
) -> None:
    async with harness.worker(worker_settings):
        code, findings = await gateway_findings(gateway_settings, capsys)
        worker_code, of_worker = await worker_findings(worker_settings, capsys)

    assert (code, worker_code) == (0, 0)
    assert find_problems(findings) | find_problems(of_worker) <= {"broker"}  # an old broker does not report consumers
    assert {"schema", "clock", "connections", "role", "alarms", "partition 0", "partition 1"} <= set(findings)


async def test_partition_without_a_consumer_is_a_problem(gateway_settings: GatewaySettings, capsys: Printed) -> None:
    code, findings = await gateway_findings(gateway_settings, capsys)

    assert code == 1
    assert {"partition 0", "partition 1"} <= find_problems(findings)
    assert "start a worker" in findings["partition 0"]["advice"]


async def test_queue_that_is_not_on_every_node_is_a_warning_with_the_command_that_mends_it(
    worker_settings: WorkerSettings,
) -> None:
    topology = Topology.of(worker_settings)
    queue = topology.command_queue(0)
    nodes = [NodeMetrics({queue: 0}, frozenset({queue}), True), NodeMetrics({}, frozenset(), True)]
    async with harness.worker(worker_settings), open_connection(worker_settings.broker_url, "test") as connection:
        alone = await check_partition(connection, topology, 0, nodes)
        everywhere = await check_partition(connection, topology, 0, nodes[:1])

    assert (alone.level, everywhere.level) == (Level.WARNING, Level.OK)
    assert "1 of 2 nodes" in alone.found
    assert "rabbitmq-queues grow" in alone.advice


async def test_queue_that_is_on_no_node_is_never_put_down_to_a_missing_worker(
    worker_settings: WorkerSettings, servers: Services
) -> None:
    topology = Topology.of(worker_settings)
    await harness.declare(servers, topology)
    async with open_connection(worker_settings.broker_url, "test") as connection:
        finding = await check_partition(connection, topology, 0, [NodeMetrics({}, frozenset(), True)])

    assert finding.level is Level.PROBLEM
    assert "restart the node" in finding.advice
    assert "start a worker" not in finding.advice


async def test_server_that_is_away_does_not_keep_the_others_from_being_checked(
    gateway_settings: GatewaySettings, capsys: Printed
) -> None:
    for away, check, still in (("database_url", "Postgres", "alarms"), ("broker_url", "broker", "schema")):
        settings = GatewaySettings.model_validate(gateway_settings.model_dump() | {away: NOWHERE[away]})
        code, findings = await gateway_findings(settings, capsys)

        assert code == 1
        assert findings[check]["found"].startswith("does not answer")
        assert findings[still]["level"] == "ok"


async def test_missing_virtual_host_for_hints_is_a_warning(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, capsys: Printed
) -> None:
    url = gateway_settings.broker_url.get_secret_value().text.partition("?")[0] + "?hints_vhost=missing"
    settings = GatewaySettings.model_validate(gateway_settings.model_dump() | {"broker_url": url})
    async with harness.worker(worker_settings):
        code, findings = await gateway_findings(settings, capsys)

    assert (code, findings["hints"]["level"]) == (0, "warning")
    assert "missing" in findings["hints"]["found"]
    assert "dev/definitions.sh" in findings["hints"]["advice"]


async def test_outdated_schema_is_reported_with_the_command_that_updates_it(
    gateway_settings: GatewaySettings, database: "Connection[Record]", capsys: Printed
) -> None:
    await database.execute("update alembic_version set version_num = '0001'")

    code, findings = await gateway_findings(gateway_settings, capsys)

    assert (code, findings["schema"]["level"]) == (1, "problem")
    assert "alembic upgrade head" in findings["schema"]["advice"]


async def test_gateway_that_may_write_is_a_problem(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, capsys: Printed
) -> None:
    settings = gateway_settings.model_copy(update={"database_url": worker_settings.database_url})

    code, findings = await gateway_findings(settings, capsys)

    assert (code, findings["role"]["level"]) == (1, "problem")


async def test_worker_that_may_not_write_is_a_problem(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, capsys: Printed
) -> None:
    settings = worker_settings.model_copy(update={"database_url": gateway_settings.database_url})

    code, findings = await worker_findings(settings, capsys)

    assert (code, findings["role"]["level"]) == (1, "problem")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("revoke update on notes from inkwell_worker", "may not write notes"),
        ("revoke insert on tombstones from inkwell_worker", "may not write tombstones"),
        ("revoke usage on sequence users_id_seq from inkwell_worker", "may not write users"),
        ("alter role inkwell_worker in database {} set default_transaction_read_only = on", "may only read here"),
    ],
)
async def test_worker_that_lacks_one_right_is_a_problem(
    worker_settings: WorkerSettings, database: "Connection[Record]", capsys: Printed, change: str, found: str
) -> None:
    await database.execute(change.format(await database.fetchval("select current_database()")))

    code, findings = await worker_findings(worker_settings, capsys)

    assert (code, findings["role"]["level"]) == (1, "problem")
    assert findings["role"]["found"].startswith(found)


async def test_gateway_that_may_not_read_is_a_problem(
    gateway_settings: GatewaySettings, database: "Connection[Record]", capsys: Printed
) -> None:
    await database.execute("revoke select on notes from inkwell_gateway")

    code, findings = await gateway_findings(gateway_settings, capsys)

    assert (code, findings["role"]["found"]) == (1, "may not read notes")


@pytest.mark.parametrize(
    "change",
    [
        "grant select on commands to inkwell_gateway",
        "grant execute on function pg_advisory_lock(bigint) to inkwell_gateway",
    ],
)
async def test_gateway_whose_role_has_lost_its_bounds_is_warned_of(
    gateway_settings: GatewaySettings, database: "Connection[Record]", capsys: Printed, change: str
) -> None:
    _, findings = await gateway_findings(gateway_settings, capsys)
    assert findings["bounds of the role"]["level"] == "ok"
    await database.execute(change)

    _, findings = await gateway_findings(gateway_settings, capsys)

    assert findings["bounds of the role"]["level"] == "warning"
    assert "dev/roles.sql" in findings["bounds of the role"]["advice"]


async def test_dead_letter_is_a_warning(worker_settings: WorkerSettings, connections: Any, capsys: Printed) -> None:
    bad = create("x")
    await apply_batch(connections, [BadCommand(bad.id, "unknown_type", bad.model_dump_json())])

    async with harness.worker(worker_settings):
        code, findings = await worker_findings(worker_settings, capsys)

    assert (code, findings["dead letters"]["level"]) == (0, "warning")


async def test_number_of_partitions_that_is_too_low_is_a_problem(
    gateway_settings: GatewaySettings, capsys: Printed
) -> None:
    settings = gateway_settings.model_copy(update={"partitions": 1})

    _, findings = await gateway_findings(settings, capsys)

    assert findings["partitions"]["level"] == "problem"


async def test_incomplete_change_of_the_number_of_partitions_is_reported_with_the_command_that_completes_it(
    gateway_settings: GatewaySettings, servers: Services, capsys: Printed
) -> None:
    topology = Topology.of(gateway_settings)
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        await topology.close_routes(channel)
        _, closed = await gateway_findings(gateway_settings, capsys)
        await Topology(topology.prefix, 1).open_routes(channel, topology)
        _, opened = await gateway_findings(gateway_settings.model_copy(update={"partitions": None}), capsys)

    assert closed["partitions"]["level"] == "problem"
    assert "repartition" in closed["partitions"]["advice"]
    assert opened["partitions"]["found"] == "1"
    assert "python -m worker repartition 1" in opened["queues"]["advice"]


async def test_broker_that_only_workers_of_the_previous_version_have_prepared_is_reported(
    gateway_settings: GatewaySettings, servers: Services, capsys: Printed
) -> None:
    topology = Topology.of(gateway_settings)
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        for name in (topology.routes_exchange, topology.range_exchange):
            await channel.exchange_delete(name)

    _, findings = await gateway_findings(gateway_settings, capsys)

    assert findings["partitions"]["level"] == "problem"


@pytest.mark.parametrize(("argument", "level"), [("x-max-length-bytes", "warning"), ("x-overflow", "problem")])
async def test_queue_with_other_arguments_is_reported(
    servers: Services, worker_settings: WorkerSettings, capsys: Printed, argument: str, level: str
) -> None:
    topology = Topology.of(worker_settings)
    others: FieldTable = {"x-max-length-bytes": 5000} if argument == "x-max-length-bytes" else {}
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        arguments: FieldTable = {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-overflow": "reject-publish" if others else "drop-head",
            "x-max-length-bytes": topology.queue_limit_bytes,
        }
        await channel.declare_queue(topology.command_queue(0), durable=True, arguments=arguments | others)
    await harness.declare(servers, topology)

    _, findings = await worker_findings(worker_settings, capsys)

    assert findings["partition 0"]["level"] == level


async def test_server_that_falls_silent_is_a_problem_within_the_deadline(
    worker_settings: WorkerSettings, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.doctor.CHECK_TIMEOUT_SECONDS", 0.3)
    async with silent_server() as port:
        silent = {
            "database_url": f"postgresql://nobody:nothing@127.0.0.2:{port}/n",
            "broker_url": f"amqp://n:n@127.0.0.2:{port}/",
        }
        async with asyncio.timeout(10):
            code, findings = await worker_findings(
                WorkerSettings.model_validate(worker_settings.model_dump() | silent), capsys
            )

    assert code == 1
    assert {"Postgres", "broker"} <= find_problems(findings)


async def test_login_that_the_broker_refuses_is_a_problem_with_its_remedy(
    worker_settings: WorkerSettings, capsys: Printed
) -> None:
    url = worker_settings.broker_url.get_secret_value()
    [(host, port)] = url.hosts
    wrong = {"broker_url": f"amqp://{url.user}:wrong@{host}:{port}/"}

    _, findings = await worker_findings(WorkerSettings.model_validate(worker_settings.model_dump() | wrong), capsys)

    assert "refuses the login" in findings["broker"]["found"]
    assert "correct INKWELL_BROKER_URL" in findings["broker"]["advice"]
