"""The environment variables of a container in a manifest, and the files in its volumes."""

import re

from tests.k8s.passwords import secrets_of
from tests.support.rendering import Object, find


def environment(overlay: str, container: Object) -> dict[str, str]:
    """A container's variables as the kubelet sets them; a value may refer to earlier ones."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= content(overlay, source["configMapRef"]["name"])
    for each in container.get("env", []):
        variables[each["name"]] = expanded(each["value"], variables)
    return variables


def files_of(overlay: str, volume: Object) -> dict[str, str]:
    """The files in a volume that has ConfigMaps or Secrets."""
    files: dict[str, str] = {}
    for source in volume["projected"]["sources"] if "projected" in volume else [volume]:
        if "configMap" in source:
            held = content(overlay, source["configMap"]["name"])
        else:
            held = secrets_of(overlay)[source["secret"].get("secretName") or source["secret"]["name"]]
        items = next((each.get("items") for each in source.values() if isinstance(each, dict)), None)
        files |= {each["path"]: held[each["key"]] for each in items} if items else held
    return files


def content(overlay: str, config_map: str) -> dict[str, str]:
    """The data of a ConfigMap."""
    data: dict[str, str] = find(overlay, "ConfigMap", config_map)["data"]
    return data


def expanded(text: str, variables: dict[str, str]) -> str:
    """The text with the values of `$(NAME)`; `$$` is a dollar, and an unknown name is kept."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([\w.-]+)\)", value, text)
