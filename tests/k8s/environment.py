"""The environment variables of a container in a manifest."""

import re

from tests.k8s.passwords import held_by
from tests.support.rendering import Object, find


def environment(overlay: str, container: Object) -> dict[str, str]:
    """A container's variables as the kubelet sets them; a value may refer to earlier ones."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= content(overlay, source["configMapRef"]["name"])
    for each in container.get("env", []):
        if "valueFrom" in each:
            variables[each["name"]] = held_by(overlay, **each["valueFrom"]["secretKeyRef"])
        else:
            variables[each["name"]] = expanded(each["value"], variables)
    return variables


def content(overlay: str, config_map: str) -> dict[str, str]:
    """The data of a ConfigMap."""
    data: dict[str, str] = find(overlay, "ConfigMap", config_map)["data"]
    return data


def expanded(text: str, variables: dict[str, str]) -> str:
    """The text with the values of `$(NAME)`; `$$` is a dollar, and an unknown name is kept."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([\w.-]+)\)", value, text)
