"""The names of all `INKWELL_…` variables, so that a misspelt one is rejected instead of ignored.

Each service accepts the other services' settings too, since they often share one `.env` or ConfigMap.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

PREFIX = "INKWELL_"
IN_COMMON = (
    "BROKER_URL",
    "COMMAND_MAX_AGE_DAYS",
    "COMMAND_RETENTION_DAYS",
    "DATABASE_URL",
    "DRAIN_TIMEOUT_SECONDS",
    "ENVIRONMENT",
    "LOG_FORMAT",
    "LOG_LEVEL",
    "METRICS_HOST",
    "METRICS_PORT",
    "PARTITIONS",
    "QUEUE_LIMIT_BYTES",
    "QUEUE_PREFIX",
    "SECRETS_DIR",
)
GATEWAY = (
    "AUTH",
    "BACKLOG_LIMIT_BYTES",
    "BODY_LIMIT_BYTES",
    "CORS_ORIGINS",
    "DESCRIPTION_MAX_LENGTH",
    "DOCS",
    "DRAIN_DELAY_SECONDS",
    "FINGERPRINT_KEY",
    "HOST",
    "KEEP_ALIVE_SECONDS",
    "KEPT_PAGES_BYTES",
    "LOGIN_ADDRESS_LIMIT",
    "LOGIN_LIMIT",
    "PORT",
    "PUBLISH_TIMEOUT_SECONDS",
    "READ_CONNECTIONS",
    "READ_TIMEOUT_SECONDS",
    "REGISTRATION_LIMIT",
    "REQUIRE_PRECONDITIONS",
    "ROOT_PATH",
    "SEARCH_MATCHES",
    "SEARCH_TIMEOUT_SECONDS",
    "SEND_TIMEOUT_SECONDS",
    "SIGNING_KEYS",
    "TITLE_MAX_LENGTH",
    "TOKEN_ISSUER",
    "TOKEN_LIFETIME_SECONDS",
    "TRUSTED_PROXIES",
    "TRUST_NETWORK",
    "WAITERS_LIMIT",
    "WAIT_SECONDS",
)
WORKER = ("BATCH_COMMANDS", "PREFETCH_MESSAGES", "WORKER_HEALTH_HOST", "WORKER_HEALTH_PORT")
MIGRATION = ("SEARCH_LANGUAGE",)
TOOLS = ("STATE", "TOKEN", "URL")
"""Of `make up` without Docker, and of the clients in docs/clients.md: services started from the same shell see them."""
SETTINGS = frozenset(PREFIX + name for name in (*IN_COMMON, *GATEWAY, *WORKER, *MIGRATION))
NAMES = SETTINGS | {PREFIX + name for name in TOOLS}

_OF_A_SERVICE = re.compile(
    r"INKWELL_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://.*")


def is_kubernetes_variable(name: str, value: str) -> bool:
    """Whether the variable is one that Kubernetes sets for a Service named `inkwell…`.

    A Service named `inkwell` collides with a setting: INKWELL_PORT=tcp://10.0.0.1:8000.
    """
    is_port = name.upper().endswith("_PORT") and _ADDRESS.fullmatch(value) is not None
    return is_port or _OF_A_SERVICE.fullmatch(name) is not None


def find_unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield an error message for each variable with the prefix that is not a setting."""
    for name in sorted(environment):
        is_ours = name.upper().startswith(PREFIX) and not is_kubernetes_variable(name, environment[name])
        if is_ours and name.upper() not in NAMES:
            yield f"{name}: there is no such setting{_advice(_nearest(name))}"


def find_unknown_files(names: Iterable[str]) -> Iterator[str]:
    """Yield an error message for each file of INKWELL_SECRETS_DIR with the prefix that is not a setting."""
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in SETTINGS:
            yield f"INKWELL_SECRETS_DIR: there is no setting for its file {name}{_advice(_nearest(name).lower())}"


def _nearest(name: str) -> str:
    """Return the setting with the most similar name; empty if none is similar."""
    known = sorted(each.removeprefix(PREFIX) for each in SETTINGS)
    nearest = get_close_matches(name.upper().removeprefix(PREFIX), known, n=1)
    return PREFIX + nearest[0] if nearest else ""


def _advice(nearest: str) -> str:
    return f"; did you mean {nearest}?" if nearest else ""
