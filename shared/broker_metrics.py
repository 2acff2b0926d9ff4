"""Reads from RabbitMQ's metrics what AMQP does not reveal: unacknowledged messages, and the queues of each node."""

import asyncio
import re
from dataclasses import dataclass
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

from pydantic import Secret

from shared.broker_url import BrokerUrl

PORT = 15692
"""The default port of the plugin rabbitmq_prometheus, which requires no credentials."""
TIMEOUT_SECONDS = 2.0
PATH = "/metrics/detailed?family=queue_coarse_metrics&family=ra_metrics"
_UNACKNOWLEDGED = re.compile(
    r'^rabbitmq_detailed_queue_messages_unacked\{vhost="(?P<vhost>[^"]*)",queue="(?P<queue>[^"]*)"\} (?P<number>\d+)',
    re.MULTILINE,
)
_RAFT = "rabbitmq_detailed_raft_"
_MEMBER = re.compile(rf"^{_RAFT}(?:log_)?commit_index\{{(?P<labels>[^}}]*)\}}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class NodeMetrics:
    """One node's metrics of the queues in a virtual host."""

    unacknowledged: dict[str, int]
    """The number of unacknowledged messages in each queue, a few seconds old; 0 on a follower."""
    members: frozenset[str]
    """The queues of which this node has a Raft member."""
    has_raft: bool
    """False after the node could not write its Raft log (full disk); only a restart of the node repairs it."""


async def read_broker_metrics(broker_url: Secret[BrokerUrl]) -> dict[str, NodeMetrics]:
    """Return the metrics of the URL's nodes by host; omits nodes whose metrics port does not answer."""
    url = broker_url.get_secret_value()
    hosts = dict.fromkeys(host for host, _ in url.hosts)
    texts = await asyncio.gather(*(asyncio.to_thread(_read_or_nothing, host) for host in hosts))
    return {host: _parse(text, url.vhost) for host, text in zip(hosts, texts, strict=True) if text}


def _parse(text: str, vhost: str) -> NodeMetrics:
    unacknowledged = {
        each["queue"]: int(each["number"]) for each in _UNACKNOWLEDGED.finditer(text) if each["vhost"] == vhost
    }
    labels = (dict(_LABEL.findall(each["labels"])) for each in _MEMBER.finditer(text))
    members = frozenset(each["queue"] for each in labels if each.get("vhost") == vhost and "queue" in each)
    return NodeMetrics(unacknowledged, members, _RAFT in text)


def _read_or_nothing(host: str) -> str:
    try:
        return _read(f"http://{f'[{host}]' if ':' in host else host}:{PORT}{PATH}")
    except (OSError, HTTPException):
        return ""


def _read(address: str) -> str:
    # Without the HTTP proxy that the environment may set.
    with build_opener(ProxyHandler({})).open(address, timeout=TIMEOUT_SECONDS) as response:
        return bytes(response.read()).decode()
