"""What RabbitMQ's own metrics tell and AMQP does not: unacknowledged messages, and queues without a Raft member."""

import asyncio
import re
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import unquote
from urllib.request import ProxyHandler, build_opener

from pydantic import AmqpDsn, Secret

PORT = 15692
"""The default port of the plugin rabbitmq_prometheus, which needs no credentials."""
TIMEOUT_SECONDS = 2.0
PATH = "/metrics/detailed?family=queue_coarse_metrics&family=ra_metrics"
_UNACKNOWLEDGED = re.compile(
    r'^rabbitmq_detailed_queue_messages_unacked\{vhost="(?P<vhost>[^"]*)",queue="(?P<queue>[^"]*)"\} (?P<number>\d+)',
    re.MULTILINE,
)
_RAFT = "rabbitmq_detailed_raft_"
_MEMBER = re.compile(rf"^{_RAFT}(?:log_)?commit_index\{{(?P<labels>[^}}]*)\}}", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class BrokerMetrics:
    """What the node that was asked knows of the queues in one virtual host."""

    unacknowledged: dict[str, int]
    """The number of unacknowledged messages in each queue, as of a few seconds ago."""
    members: frozenset[str]
    """The queues of which this node runs a Raft member."""
    has_raft: bool
    """False after a failed write to the node's log, as on a full disk; only a restart of the node mends it."""


async def read_broker_metrics(broker_url: Secret[AmqpDsn]) -> BrokerMetrics | None:
    """The metrics of the node at this address, or None if they do not answer."""
    url = broker_url.get_secret_value()
    vhost = unquote((url.path or "/").removeprefix("/")) or "/"
    try:
        text = await asyncio.to_thread(_read, f"http://{url.host}:{PORT}{PATH}")
    except (OSError, HTTPException):
        return None
    unacknowledged = {
        each["queue"]: int(each["number"]) for each in _UNACKNOWLEDGED.finditer(text) if each["vhost"] == vhost
    }
    labels = (dict(re.findall(r'(\w+)="([^"]*)"', each["labels"])) for each in _MEMBER.finditer(text))
    members = frozenset(each["queue"] for each in labels if each.get("vhost") == vhost and "queue" in each)
    return BrokerMetrics(unacknowledged, members, _RAFT in text)


def _read(address: str) -> str:
    # Ignores the HTTP proxy that the environment may name.
    with build_opener(ProxyHandler({})).open(address, timeout=TIMEOUT_SECONDS) as answer:
        return bytes(answer.read()).decode()
