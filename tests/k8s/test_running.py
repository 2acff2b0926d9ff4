"""The pods of the `dev` overlay run as the manifests say: users, rights, limits, files, probes, connections."""

import sys

import httpx
import pytest

from tests.k8s.arrows import outwards, within
from tests.k8s.connections import OUTSIDE, arrows_seen
from tests.k8s.pods import Namespace, Pod
from tests.support import canaries
from tests.support.accounts import sign_up

pytestmark = [
    pytest.mark.needs_docker,
    pytest.mark.skipif(sys.platform != "linux", reason="pods are reached at their own addresses"),
]
PARTS = "postgres", "rabbitmq", "gateway", "worker"
MEBIBYTE = 1024 * 1024
NO_CAPABILITIES = "0000000000000000"


async def test_note_is_written_and_read(namespace: Namespace) -> None:
    [gateway] = namespace.of("gateway")
    async with httpx.AsyncClient(base_url=gateway.url("http"), timeout=30) as client:
        person = await sign_up(client)
        created = await client.post("/notes/", json=canaries.NOTE, headers=person.headers)
        assert created.status_code == 201, created.text
        read = await client.get(created.headers["Location"], headers=person.headers)

    assert read.json() == created.json()


@pytest.mark.parametrize("part", PARTS)
async def test_pod_passes_its_probes_and_was_not_started_again(namespace: Namespace, part: str) -> None:
    [pod] = namespace.of(part)

    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert await pod.passes(probe), probe
    assert pod.state["RestartCount"] == 0


@pytest.mark.parametrize("part", PARTS)
async def test_first_process_has_the_user_and_none_of_the_rights(namespace: Namespace, part: str) -> None:
    [pod] = namespace.of(part)
    status = dict(
        line.split(":\t", 1) for line in (await pod.run("cat", "/proc/1/status")).splitlines() if "\t" in line
    )
    user = pod.spec["securityContext"]

    assert set(status["Uid"].split()) == {str(user["runAsUser"])}
    assert set(status["Gid"].split()) == {str(user["runAsGroup"])}
    assert {status[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {NO_CAPABILITIES}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


async def test_image_runs_as_any_user_as_openshift_has_it(namespace: Namespace) -> None:
    [pod] = namespace.of("gateway")
    command = "python -m shared.wait_for_schema && python -c 'import gateway.app, worker.consumer' && id -u"

    assert await pod.run_beside(["sh", "-c", command], user="1000680000:0") == "1000680000\n"


@pytest.mark.parametrize("part", PARTS)
async def test_nothing_can_be_written_beside_the_volumes(namespace: Namespace, part: str) -> None:
    [pod] = namespace.of(part)
    options = {line.split()[1]: line.split()[3] for line in (await pod.run("cat", "/proc/mounts")).splitlines()}
    places = {await real_path(pod, each["mountPath"]): each for each in pod.container["volumeMounts"]}

    writable = {place for place in (*places, "/") if options[place].startswith("rw")}
    assert writable == {place for place, each in places.items() if not each.get("readOnly")}


@pytest.mark.parametrize("part", PARTS)
async def test_no_volume_is_larger_than_it_may_get(namespace: Namespace, part: str) -> None:
    [pod] = namespace.of(part)
    limits = {each["name"]: each["emptyDir"]["sizeLimit"] for each in pod.spec["volumes"] if "emptyDir" in each}
    places = {each["mountPath"]: each["name"] for each in pod.container["volumeMounts"] if each["name"] in limits}

    for place, name in places.items():
        used = await pod.run("du", "--summarize", "--one-file-system", "--bytes", place)
        assert int(used.split()[0]) < MEBIBYTE * int(limits[name].removesuffix("Mi")), name


@pytest.mark.parametrize("part", PARTS)
async def test_memory_is_limited(namespace: Namespace, part: str) -> None:
    [pod] = namespace.of(part)
    versions = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    limit = await pod.run("sh", "-c", " || ".join(f"cat {path} 2>/dev/null" for path in versions))

    gibibytes = pod.container["resources"]["limits"]["memory"].removesuffix("Gi")
    assert int(limit) == int(gibibytes) * 1024 * MEBIBYTE


def test_who_connected_to_whom_is_what_the_policies_allow(namespace: Namespace) -> None:
    seen = arrows_seen(pod.network for pod in namespace.pods)

    # These tests and the probes connect from outside. Names are resolved on loopback; `dev` has no monitoring.
    assert {arrow for arrow in seen if arrow[0] != OUTSIDE} == within(outwards("dev"))


async def real_path(pod: Pod, path: str) -> str:
    return (await pod.run("realpath", path)).strip()
