"""The alert rules, the dashboard, the proxy and the profiles are valid and refer to things that exist."""

import json
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import REGISTRY

from dev.backend import ROOT

FILES = ROOT / "observability"
RULES = yaml.safe_load((FILES / "alerts.yml").read_text())
REDUNDANCY = yaml.safe_load((ROOT / "k8s/components/monitoring/redundancy.yaml").read_text())["spec"]
"""The rules for three nodes of each server, which only Kubernetes has."""
ALERTS = [rule for rules in (RULES, REDUNDANCY) for group in rules["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FILES / "grafana" / "dashboards" / "inkwell.json").read_text())
NAME = re.compile(r"\b(?:inkwell|http_server|process)_\w+")
OF_A_JOB = re.compile(r'\w*\{[^}]*\bjob=~?"[^}]*\}')
LABELS = re.compile(r"\bby \([^)]*\)")
SELECTOR = re.compile(r"\{|\b(?:up|(?:inkwell|http_server|process|rabbitmq|cnpg)_\w+)\b")
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

PROMTOOL, DOCKER, HAPROXY = (shutil.which(program) or "" for program in ("promtool", "docker", "haproxy"))

needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="Prometheus is not installed")


def exposed() -> set[str]:
    """The names of the samples of the services' metrics."""
    for module in ("gateway.telemetry.metrics", "worker.metrics", "shared.metrics"):
        import_module(module)
    names = set()
    for metric in REGISTRY.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(metric.type, [""])
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def expressions() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return targets + [alert["expr"] for alert in ALERTS]


def test_every_metric_that_an_alert_or_a_panel_names_exists() -> None:
    named = {name for expression in expressions() for name in NAME.findall(expression)}

    assert named <= exposed()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_is_about_jobs_that_it_names(alert: dict[str, Any]) -> None:
    assert not SELECTOR.search(LABELS.sub("", OF_A_JOB.sub("", alert["expr"])))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_has_its_section_in_the_runbook(alert: dict[str, Any]) -> None:
    assert alert["annotations"]["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
    section = RUNBOOK.partition(f"\n## {alert['alert']}\n")[2].partition("\n## ")[0]
    assert "*Do:*" in section


def test_runbook_has_no_section_without_an_alert() -> None:
    assert set(re.findall(r"^## (Inkwell\w+)$", RUNBOOK, re.MULTILINE)) == {alert["alert"] for alert in ALERTS}


@needs_promtool
def test_prometheus_accepts_its_configuration_and_rules() -> None:
    subprocess.run([PROMTOOL, "check", "config", FILES / "prometheus.yml"], check=True, capture_output=True)


@needs_promtool
def test_prometheus_can_read_the_expressions(tmp_path: Path) -> None:
    rules = [{"record": "one", "expr": each.replace("$__rate_interval", "1m")} for each in expressions()]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": f"{n}", "rules": [rule]} for n, rule in enumerate(rules)]}))

    checked = subprocess.run([PROMTOOL, "check", "rules", file], text=True, check=False, capture_output=True)

    assert checked.returncode == 0, checked.stderr


def fires(folder: Path, alert: str, samples: dict[str, str]) -> bool:
    """Whether the alert fires after half an hour of these samples, according to promtool."""
    rules = folder / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": RULES["groups"] + REDUNDANCY["groups"]}))
    series = [{"series": name, "values": values} for name, values in samples.items()]
    untold = {"eval_time": "30m", "alertname": alert, "exp_alerts": []}
    test = {"interval": "15s", "input_series": series, "alert_rule_test": [untold]}
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": [test]}))
    return subprocess.run([PROMTOOL, "test", "rules", file], check=False, capture_output=True).returncode != 0


ALARMS = ("memory_used_watermark", "free_disk_space_watermark", "file_descriptor_limit")


def alarms(*on: str) -> dict[str, str]:
    """The metrics of the broker's alarms, with these raised."""
    return {f'rabbitmq_alarms_{name}{{job="rabbitmq", instance="one"}}': f"{name in on:d}x120" for name in ALARMS}


@needs_promtool
@pytest.mark.parametrize("alarm", ALARMS)
def test_each_alarm_of_the_broker_fires_even_alone(tmp_path: Path, alarm: str) -> None:
    assert fires(tmp_path, "InkwellBrokerAlarm", alarms(alarm))
    assert not fires(tmp_path, "InkwellBrokerAlarm", alarms())


@needs_promtool
@pytest.mark.parametrize("alarm", ALARMS[:2])
def test_writes_that_an_alarm_blocks_fire_no_second_alert(tmp_path: Path, alarm: str) -> None:
    refused = {'inkwell_writes_not_accepted_total{job="gateway"}': "0+1x120"}

    assert not fires(tmp_path, "InkwellWritesNotAccepted", refused | alarms(alarm))
    assert fires(tmp_path, "InkwellWritesNotAccepted", refused | alarms())


def node(*terms: str) -> dict[str, str]:
    """The metrics of a RabbitMQ node that answers, with these Raft metrics."""
    responses = {'up{job="rabbitmq", instance="one"}': "1x120", 'inkwell_broker_connected{job="gateway"}': "0x120"}
    return responses | {f"{term.format(instance='one')}": "3x120" for term in terms}


@needs_promtool
@pytest.mark.parametrize(
    "term",
    [
        'rabbitmq_raft_term{{job="rabbitmq", instance="{instance}", module="rabbit_khepri"}}',  # RabbitMQ 4.3
        'rabbitmq_raft_term_total{{job="rabbitmq", instance="{instance}"}}',  # 4.0
    ],
)
def test_node_without_its_queues_fires_one_alert(tmp_path: Path, term: str) -> None:
    assert fires(tmp_path, "InkwellBrokerQueuesDown", node())
    assert not fires(tmp_path, "InkwellBrokerDown", node())
    assert not fires(tmp_path, "InkwellBrokerQueuesDown", node(term))
    assert fires(tmp_path, "InkwellBrokerDown", node(term))


@needs_promtool
@pytest.mark.parametrize(
    ("ready", "delivered", "is_expected"), [("7", "9", True), ("7", "9+1", False), ("0", "9", False)]
)
def test_partition_with_messages_but_without_a_worker_fires_an_alert(
    tmp_path: Path, ready: str, delivered: str, *, is_expected: bool
) -> None:
    queue = 'rabbitmq_detailed_queue_messages_ready{job="rabbitmq-queues", queue="inkwell.commands.v1.3"}'
    samples = {
        queue: f"{ready}x120",
        'up{job="worker"}': "1x120",
        'inkwell_worker_deliveries_total{job="worker", instance="one", partition="3"}': f"{delivered}x120",
        'inkwell_worker_deliveries_total{job="worker", instance="one", partition="2"}': "0+1x120",
    }

    assert fires(tmp_path, "InkwellPartitionStuck", samples) is is_expected


@needs_promtool
@pytest.mark.parametrize(("used", "is_expected"), [(4, True), (3, True), (2, False)])
def test_lists_that_wait_for_each_other_fire_an_alert_though_one_connection_is_reserved(
    tmp_path: Path, used: int, *, is_expected: bool
) -> None:
    labels = '{job="gateway", instance="one"}'
    names = ("inkwell_database_connections_used", "inkwell_database_connections_limit")
    samples = {f"{name}{labels}": f"{value}x120" for name, value in zip(names, (used, 4), strict=True)}

    assert fires(tmp_path, "InkwellConnectionsUsedUp", samples) is is_expected


@needs_promtool
@pytest.mark.parametrize(("offset", "is_expected"), [(4, False), (-4, False), (6, True), (-6, True)])
@pytest.mark.parametrize("job", ["gateway", "worker"])
def test_clock_that_differs_by_more_than_five_seconds_fires_an_alert(
    tmp_path: Path, job: str, offset: int, *, is_expected: bool
) -> None:
    assert fires(tmp_path, "InkwellClockWrong", of_each("inkwell_clock_offset_seconds", job, 0, offset)) is is_expected


@needs_promtool
@pytest.mark.parametrize(("streams", "is_expected"), [(1700, True), (1500, False)])
def test_streams_near_their_limit_fire_an_alert(tmp_path: Path, streams: int, *, is_expected: bool) -> None:
    samples = of_each("inkwell_streams", "gateway", 3, streams) | of_each(
        "inkwell_streams_limit", "gateway", 2000, 2000
    )

    assert fires(tmp_path, "InkwellStreamsNearlyUsedUp", samples) is is_expected


@needs_promtool
@pytest.mark.parametrize(
    ("streams", "hints", "broker", "is_expected"),
    [(1, 0, 1, True), (1, 0, 0, False), (1, 1, 1, False), (0, 0, 1, False)],
)
def test_streams_without_hints_fire_an_alert_unless_the_broker_is_down(
    tmp_path: Path, streams: int, hints: int, broker: int, *, is_expected: bool
) -> None:
    samples = {
        **of_each("inkwell_streams", "gateway", streams),
        **of_each("inkwell_hints_connected", "gateway", hints),
        **of_each("inkwell_broker_connected", "gateway", broker),
    }

    assert fires(tmp_path, "InkwellHintsMissing", samples) is is_expected


def of_each(metric: str, job: str, *values: object, **labels: str) -> dict[str, str]:
    """A sample for each instance of a job, and one for an instance of a foreign job."""
    others = "".join(f', {name}="{value}"' for name, value in labels.items())
    samples = {f'{metric}{{job="{job}", instance="{n}"{others}}}': f"{value}x120" for n, value in enumerate(values)}
    return samples | {f'{metric}{{job="another", instance="9"}}': "9x120"}


DIFFER = "inkwell_partitions_differ"
IDENTITY = "rabbitmq_identity_info"
STANDBYS = "cnpg_pg_replication_streaming_replicas"
ARCHIVED, FAILED = (f"cnpg_pg_stat_archiver_last_{each}_time" for each in ("archived", "failed"))


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "whole", "broken"),
    [
        ("InkwellPartitionsDiffer", of_each(DIFFER, "gateway", 0, 0), of_each(DIFFER, "gateway", 0, 1)),
        ("InkwellPartitionsDiffer", of_each(DIFFER, "worker", 0, 0), of_each(DIFFER, "worker", 1, 0)),
        ("InkwellStandbyMissing", of_each(STANDBYS, "postgres", 2, 0, 0), of_each(STANDBYS, "postgres", 1, 0)),
        ("InkwellStandbyMissing", of_each(STANDBYS, "postgres", 0, 2, 0), of_each(STANDBYS, "postgres")),
        ("InkwellBrokerNodeMissing", of_each("up", "rabbitmq", 1, 1, 1), of_each("up", "rabbitmq", 1, 0, 1)),
        ("InkwellBrokerNodeMissing", of_each("up", "rabbitmq", 1, 1, 1), of_each("up", "rabbitmq")),
        (
            "InkwellBrokerSplit",
            of_each(IDENTITY, "rabbitmq", 1, 1, 1, rabbitmq_cluster_permanent_id="a"),
            of_each(IDENTITY, "rabbitmq", 1, 1, rabbitmq_cluster_permanent_id="a")
            | of_each(IDENTITY, "rabbitmq", 1, rabbitmq_cluster_permanent_id="b"),
        ),
        (
            "InkwellWalNotArchived",
            of_each(ARCHIVED, "postgres", 20) | of_each(FAILED, "postgres", 10),
            of_each(ARCHIVED, "postgres", 10) | of_each(FAILED, "postgres", 20),
        ),
    ],
)
def test_incomplete_server_fires_an_alert(
    tmp_path: Path, alert: str, whole: dict[str, str], broken: dict[str, str]
) -> None:
    assert fires(tmp_path, alert, broken)
    assert not fires(tmp_path, alert, whole)


@pytest.mark.skipif(not HAPROXY, reason="HAProxy is not installed")
def test_haproxy_accepts_its_configuration_without_a_warning() -> None:
    command = [HAPROXY, "-c", "-dW", "-f", str(ROOT / "dev" / "haproxy.cfg")]
    checked = subprocess.run(command, text=True, check=False, capture_output=True)

    assert checked.returncode == 0, checked.stderr


def test_pipelines_of_the_collector_use_what_is_defined() -> None:
    collector = yaml.safe_load((FILES / "collector.yml").read_text())

    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= collector[kind].keys()


def test_traces_go_to_services_of_the_stack_at_the_ports_where_they_listen() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    collector = yaml.safe_load((FILES / "collector.yml").read_text())
    source = yaml.safe_load((FILES / "grafana/provisioning/datasources/jaeger.yml").read_text())["datasources"][0]

    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(":4318")
    for url in (collector["exporters"]["otlphttp"]["endpoint"], source["url"], "http://collector:4318"):
        assert httpx.URL(url).host in services
    assert all("observability" in services[name]["profiles"] for name in ("collector", "jaeger"))


def test_services_export_nothing_by_default() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    for name in ("gateway", "worker"):
        assert services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "${OTEL_EXPORTER_OTLP_ENDPOINT:-}"


@pytest.mark.needs_docker
@pytest.mark.parametrize(
    "arguments",
    [["--profile", "observability"], ["--file", "docker-compose.yml", "--file", "docker-compose.proxy.yml"]],
)
def test_stack_is_valid_with_what_is_added_to_it(arguments: list[str]) -> None:
    subprocess.run([DOCKER, "compose", *arguments, "config", "--quiet"], cwd=ROOT, check=True, capture_output=True)
