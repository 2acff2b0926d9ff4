"""The names of all `INKWELL_…` variables, so that a misspelled one is rejected instead of ignored.

Each service accepts the other services' settings too, since they often share one `.env` or ConfigMap.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pkgutil import resolve_name

from pydantic import BaseModel

PREFIX = "INKWELL_"
SETTINGS_CLASSES = (
    "shared.settings:SecretFiles",
    "shared.settings:MigrationSettings",
    "gateway.settings:GatewaySettings",
    "worker.settings:WorkerSettings",
)
"""Resolved at run time, and only if a variable is not one of the service's own: `shared` imports neither service."""
TOOLS = frozenset({"INKWELL_STATE", "INKWELL_TOKEN", "INKWELL_URL"})
"""Of `make up` without Docker, and of the clients in docs/clients.md: services started from the same shell see them."""

_OF_A_SERVICE = re.compile(
    r"INKWELL_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://.*")


def list_names(settings_class: type[BaseModel]) -> frozenset[str]:
    """Return the variables of a settings class."""
    return frozenset(PREFIX + name.upper() for name in settings_class.model_fields)


@cache
def list_all_names() -> frozenset[str]:
    """Return the variables of all settings classes."""
    return frozenset[str]().union(*(list_names(resolve_name(each)) for each in SETTINGS_CLASSES))


def is_kubernetes_variable(name: str, value: str) -> bool:
    """Whether the variable is one that Kubernetes sets for a Service named `inkwell…`.

    A Service named `inkwell` collides with a setting: INKWELL_PORT=tcp://10.0.0.1:8000.
    """
    is_port = name.upper().endswith("_PORT") and _ADDRESS.fullmatch(value) is not None
    return is_port or _OF_A_SERVICE.fullmatch(name) is not None


def iter_unknown_variables(environment: Mapping[str, str], own: Collection[str]) -> Iterator[str]:
    """Yield an error message for each variable with the prefix that is not a setting; `own` are the service's names."""
    candidates = {name for name in environment if not is_kubernetes_variable(name, environment[name])}
    for name in _iter_unknown(candidates, {*own, *TOOLS}):
        yield f"{name}: unknown setting{_suggest(name)}"


def iter_unknown_files(names: Iterable[str], own: Collection[str]) -> Iterator[str]:
    """Yield an error message for each file of INKWELL_SECRETS_DIR with the prefix that is not a setting."""
    for name in _iter_unknown(names, own):
        yield f"INKWELL_SECRETS_DIR: its file {name} is not a setting{_suggest(name).lower()}"


def _iter_unknown(names: Iterable[str], known: Collection[str]) -> Iterator[str]:
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in known and name.upper() not in list_all_names():
            yield name


def _suggest(name: str) -> str:
    """Return a suggestion for the end of a message; empty if no setting has a similar name."""
    known = sorted(each.removeprefix(PREFIX) for each in list_all_names())
    nearest = get_close_matches(name.upper().removeprefix(PREFIX), known, n=1)
    return f"; did you mean {PREFIX}{nearest[0]}?" if nearest else ""
