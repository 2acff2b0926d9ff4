"""Runs an overlay's pods like a kubelet, on the Docker engine: as much of Kubernetes as these manifests need.

A pod is a container that only holds its address, and the manifest's containers, which share it. (`podman kube play`
runs such files, but supports neither StatefulSets nor readiness nor preStop hooks.)
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import httpx
from docker.models.containers import Container

from shared import __version__
from tests.k8s.connections import WATCH, Network
from tests.k8s.containers import Volumes, refuse_unknown, rights_and_limits
from tests.k8s.environment import environment, expanded
from tests.support.rendering import Object, find, makers_of, objects_of

IMAGE = f"inkwell:{__version__}"
EXEC_TRIES = 5
"""A busy engine sometimes loses the output of a short command."""
RESTART_SECONDS = 1
"""The pause before a failed container is restarted; Kubernetes waits longer."""
START_SECONDS = 120


@dataclass
class Namespace:
    """The pods of one overlay, in their own network."""

    overlay: str
    folder: Path
    """The folder for the files of ConfigMaps."""
    name: str = field(default_factory=lambda: f"inkwell-pods-{uuid4().hex[:8]}")
    engine: docker.DockerClient = field(default_factory=docker.from_env)
    pods: list["Pod"] = field(default_factory=list)
    """Ended pods included; their addresses are not used again."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts one pod of each kind at once, like `kubectl apply`; removes everything after the block."""
        self.engine.networks.create(self.name, labels={self.name: ""})
        try:
            async with asyncio.TaskGroup() as starting:
                for each in makers_of(self.overlay):
                    starting.create_task(self._start(each))
            yield
        finally:
            await asyncio.to_thread(self._remove)

    async def start(self, deployment: str) -> "Pod":
        """Adds a ready pod to a Deployment."""
        return await self._start(find(self.overlay, "Deployment", deployment))

    async def _start(self, maker: Object) -> "Pod":
        pod = Pod(self, maker)
        self.pods.append(pod)
        await pod.start()
        return pod

    def of(self, part: str) -> list["Pod"]:
        """The running pods of this part."""
        return [pod for pod in self.pods if pod.part == part and pod.exit_code is None]

    def services_of(self, pod: "Pod") -> list[str]:
        """The names of the Services of a pod, whose ports must be its own: nothing here translates them."""
        services = [each for each in objects_of(self.overlay) if each["kind"] == "Service"]
        chosen = [each for each in services if each["spec"]["selector"].items() <= pod.labels.items()]
        for each in (port for service in chosen for port in service["spec"]["ports"]):
            assert each["port"] == pod.port(each["targetPort"])
        return [each["metadata"]["name"] for each in chosen]

    def _remove(self) -> None:
        ours: dict[str, str | list[str] | bool] = {"label": self.name}
        for container in self.engine.containers.list(all=True, filters=ours):
            container.remove(force=True)
        for kind in (self.engine.volumes, self.engine.networks):
            for each in kind.list(filters=ours):
                each.remove()
        self.engine.close()


class Pod:
    """One pod."""

    address: str
    main: Container
    """The container of the manifest that runs, or ran last."""

    def __init__(self, namespace: Namespace, maker: Object) -> None:
        self._namespace, self._maker, template = namespace, maker, maker["spec"]["template"]
        self.spec: Object = template["spec"]
        refuse_unknown(maker)
        [self.container] = self.spec["containers"]
        self.labels: dict[str, str] = template["metadata"]["labels"]
        self.part = self.labels["inkwell/part"]
        self.name = f"{self.part}-{'0' if maker['kind'] == 'StatefulSet' else uuid4().hex[:5]}"
        self.exit_code: int | None = None
        """None until it has stopped or completed."""
        self._unique = f"{namespace.name}-{self.name}"
        self._volumes = Volumes(namespace.overlay, maker, namespace.folder, self._unique)

    async def start(self) -> None:
        """Returns when the pod is ready, or a Job's has completed."""
        await asyncio.to_thread(self._prepare)
        try:
            async with asyncio.timeout(START_SECONDS):
                for each in self.spec.get("initContainers", []):
                    await self._to_end(each)
                if self._maker["kind"] == "Job":
                    self.exit_code = await self._to_end(self.container)
                else:
                    await self._to_ready()
        except TimeoutError:
            raise AssertionError(f"{self.name} is not ready:\n{self.log}") from None

    async def _to_ready(self) -> None:
        await asyncio.to_thread(self._run, self.container, restart_policy={"Name": "always"})
        startup = self.container["startupProbe"]
        for _ in range(startup["failureThreshold"]):
            if await self.passes("startupProbe"):
                break
            await asyncio.sleep(startup["periodSeconds"])
        else:
            raise AssertionError(f"{self.name} has not started:\n{self.log}")
        while not await self.passes("readinessProbe"):
            await asyncio.sleep(self.container["readinessProbe"]["periodSeconds"])

    async def stop(self) -> int:
        """Ends the pod as on deletion; returns the exit code, which is 137 if it had to be killed."""
        left = self.spec["terminationGracePeriodSeconds"]
        if "lifecycle" in self.container:
            seconds = self.container["lifecycle"]["preStop"]["sleep"]["seconds"]
            await asyncio.sleep(seconds)
            left -= seconds
        await asyncio.to_thread(self.main.stop, timeout=left)  # SIGTERM, then SIGKILL
        self.exit_code = int(self.state["ExitCode"])
        return self.exit_code

    async def passes(self, kind: str) -> bool:
        """Whether a probe of the pod succeeds."""
        probe = self.container[kind]
        try:
            async with asyncio.timeout(probe["timeoutSeconds"]):
                return await self._ask(probe)
        except (OSError, TimeoutError, httpx.TransportError):
            return False

    async def run(self, *command: str) -> str:
        """The output of a command in its container."""
        printed, tries = b"", 0
        while not printed and tries < EXEC_TRIES:
            result = await asyncio.to_thread(self.main.exec_run, list(command))
            assert isinstance(result.output, bytes)
            assert result.exit_code == 0, result.output
            printed, tries = result.output, tries + 1
        return printed.decode()

    async def run_beside(self, command: list[str], user: str) -> str:
        """The output of a command in a second container like its own, as another user; raises if it fails."""
        settings = self._settings_of(self.container) | {"user": user, "remove": True}
        printed = await asyncio.to_thread(lambda: self._namespace.engine.containers.run(IMAGE, command, **settings))
        assert isinstance(printed, bytes)
        return printed.decode()

    def port(self, name: str) -> int:
        """The port with this name in its container."""
        [port] = [int(each["containerPort"]) for each in self.container["ports"] if each["name"] == name]
        return port

    def url(self, port: str) -> str:
        """The URL at which its container serves HTTP."""
        return f"http://{self.address}:{self.port(port)}"

    @property
    def state(self) -> dict[str, Any]:
        """The engine's description of its container."""
        self.main.reload()
        return {**self.main.attrs["State"], "RestartCount": self.main.attrs["RestartCount"]}

    @property
    def log(self) -> str:
        """The log of its container."""
        return printed_by(self.main)

    @property
    def network(self) -> Network:
        """The sockets that its network has shown so far."""
        return Network(self.part, self.address, printed_by(self._holder))

    async def _ask(self, probe: Object) -> bool:
        match probe:
            case {"exec": {"command": command}}:
                return (await asyncio.to_thread(self.main.exec_run, command)).exit_code == 0
            case {"tcpSocket": {"port": port}}:
                _, writer = await asyncio.open_connection(self.address, self.port(port))
                writer.close()
                return True
            case {"httpGet": {"path": path, "port": port}}:
                async with httpx.AsyncClient() as client:
                    return not (await client.get(self.url(port) + path)).is_error
            case _:
                raise NotImplementedError(probe)

    async def _to_end(self, container: Object) -> int:
        await asyncio.to_thread(self._run, container)
        while (await asyncio.to_thread(self.main.wait))["StatusCode"] != 0:
            await asyncio.sleep(RESTART_SECONDS)
            await asyncio.to_thread(self.main.start)
        return 0

    def _prepare(self) -> None:
        network, engine = self._namespace.name, self._namespace.engine
        services = engine.api.create_endpoint_config(aliases=self._namespace.services_of(self))
        self._holder = engine.containers.run(
            IMAGE,
            ["python", "-c", WATCH],
            name=self._unique,
            hostname=self.name,
            network=network,
            networking_config={network: services},
            labels=[network],
            healthcheck={"test": ["NONE"]},
            detach=True,
        )
        self._holder.reload()
        self.address = self._holder.attrs["NetworkSettings"]["Networks"][network]["IPAddress"]
        self._volumes.make(engine, IMAGE, network)

    def _run(self, container: Object, **options: Any) -> None:
        settings = self._settings_of(container)
        self.main = self._namespace.engine.containers.run(
            container["image"],
            name=f"{self._unique}-{container['name']}",
            entrypoint=[expanded(each, settings["environment"]) for each in container.get("command", [])] or None,
            detach=True,
            **settings,
            **options,
        )

    def _settings_of(self, container: Object) -> dict[str, Any]:
        """Docker's arguments for a container of the pod."""
        return {
            "environment": environment(self._namespace.overlay, container),
            "mounts": [self._volumes.mount(each) for each in container.get("volumeMounts", [])],
            "network_mode": f"container:{self._holder.id}",
            "labels": [self._namespace.name],
            "healthcheck": {"test": ["NONE"]},
        } | rights_and_limits(self.spec, container)


def printed_by(container: Container) -> str:
    """The text that it has written to both of its streams."""
    return container.logs().decode()
