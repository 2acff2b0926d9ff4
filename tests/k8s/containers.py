"""Translates a container of a manifest for the Docker engine: rights, limits and volumes.

An unknown field is an error, or a test would pass without it.
"""

from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.types import Mount

from tests.k8s.environment import files_of
from tests.support.rendering import Object

CPU_PERIOD_MICROSECONDS = 100_000
UNDERSTOOD = {
    *("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "topologySpreadConstraints"),
    *(
        "imagePullSecrets",
        "restartPolicy",
        "terminationGracePeriodSeconds",
        "securityContext",
        "initContainers",
        "containers",
        "volumes",
    ),
    *("name", "image", "command", "env", "envFrom", "ports", "resources", "volumeMounts", "lifecycle"),
    *("startupProbe", "readinessProbe", "livenessProbe"),
}
UNDERSTOOD_OF = {
    "Deployment": {"selector", "strategy", "template"},
    "StatefulSet": {"selector", "serviceName", "replicas", "template", "volumeClaimTemplates"},
    "Job": {"backoffLimit", "template", "ttlSecondsAfterFinished"},
}
HAND_OVER = """
set -e
mkdir -p /empty /claims
find /empty -mindepth 1 -maxdepth 1 -exec chmod 777 {} +
find /claims -mindepth 1 -maxdepth 1 -exec mkdir -m 700 {}/lost+found ';'
[ -z "$GROUP" ] || { chgrp -R "$GROUP" /empty /claims; chmod -R ug+rwX,g+s /empty /claims; }
"""
"""Initialises volumes as a kubelet does; a claim's is a file system, which is not empty."""


def refuse_unknown(maker: Object) -> None:
    """Fails if a pod or its owner has a field that would be ignored; one pod is created at first."""
    spec = maker["spec"]["template"]["spec"]
    assert maker["spec"].keys() <= UNDERSTOOD_OF[maker["kind"]], maker["spec"].keys()
    assert maker["spec"].get("replicas", 1) == 1
    for each in (spec, *spec.get("initContainers", []), *spec["containers"]):
        assert each.keys() <= UNDERSTOOD, each.keys() - UNDERSTOOD
    assert spec["enableServiceLinks"] is False


def rights_and_limits(spec: Object, container: Object) -> dict[str, Any]:
    """User, capabilities and limits as Docker's arguments."""
    user, own, limits = spec["securityContext"], container["securityContext"], container["resources"]["limits"]
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}, "which is Docker's as well"
    memory = limits["memory"].removesuffix("i")  # Docker's M is a MiB
    return {
        "user": f"{user['runAsUser']}:{user['runAsGroup']}",
        "group_add": [str(user["fsGroup"])] if "fsGroup" in user else [],
        "read_only": own["readOnlyRootFilesystem"],
        "cap_drop": own["capabilities"]["drop"],
        "security_opt": [] if own["allowPrivilegeEscalation"] else ["no-new-privileges"],
        "mem_limit": memory,
        "memswap_limit": memory,
        "cpu_period": CPU_PERIOD_MICROSECONDS,
        "cpu_quota": int(_processors(limits["cpu"]) * CPU_PERIOD_MICROSECONDS),
    }


def _processors(text: str) -> float:
    return int(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


class Volumes:
    """A pod's volumes, as a kubelet provides them."""

    def __init__(self, overlay: str, maker: Object, folder: Path, name: str) -> None:
        self._name = name
        self._group = str(maker["spec"]["template"]["spec"]["securityContext"].get("fsGroup", ""))
        self._files: dict[str, Path] = {}
        self._places = {each["metadata"]["name"]: "/claims" for each in maker["spec"].get("volumeClaimTemplates", [])}
        for each in maker["spec"]["template"]["spec"]["volumes"]:
            if "emptyDir" in each:
                self._places[each["name"]] = "/empty"
            else:
                self._files[each["name"]] = folder / name / each["name"]
                _write(self._files[each["name"]], files_of(overlay, each))

    def make(self, engine: DockerClient, image: str, label: str) -> None:
        """Creates the writable ones."""
        for name in self._places:
            engine.volumes.create(f"{self._name}-{name}", labels={label: ""})
        engine.containers.run(
            image,
            ["sh", "-c", HAND_OVER],
            user="0",
            environment={"GROUP": self._group},
            mounts=[self.mount({"name": name, "mountPath": f"{at}/{name}"}) for name, at in self._places.items()],
            labels=[label],
            network_mode="none",
            remove=True,
        )

    def mount(self, mount: Object) -> Mount:
        """One of a container's mounts."""
        name, place, read_only = mount["name"], mount["mountPath"], mount.get("readOnly", False)
        if name in self._files:
            return Mount(place, str(self._files[name] / mount.get("subPath", "")), "bind", read_only=read_only)
        assert "subPath" not in mount
        # Docker would copy the image's own files into a new volume.
        return Mount(place, f"{self._name}-{name}", "volume", read_only=read_only, no_copy=True)


def _write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)  # a volume's default
