"""What is wrong with an object although its definition allows it, or that an operator would find out late or never."""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.k8s.definitions import complaints_of_definition, definitions
from tests.support.rendering import Object

VERSIONS = ("1.35.0", "1.36.0", "1.37.0")
"""Kubernetes maintains its own last three."""
SCHEMA = "kubernetes-json-schema/v{version}-local-strict/{name}.json"
WITHOUT_DEFINITION = ("cert-manager.io", "cloud.google.com", "gateway.networking.k8s.io")
"""API groups whose definitions may be missing in CRDS_DIR: of components that no overlay here includes."""
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([KMGTPE]i|[numkMGTPE]|)")
QUANTITIES = {"cpu", "ephemeral-storage", "memory", "size", "sizeLimit", "storage"}
CHOICES: dict[str, set[str]] = {
    "accessModes": {"ReadWriteOnce", "ReadWriteOncePod"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "medium": {"", "Memory"},
    "nodeAffinityPolicy": {"Honor", "Ignore"},
    "nodeTaintsPolicy": {"Honor", "Ignore"},
    "operator": {"In", "NotIn", "Exists", "DoesNotExist", "Equal", "Gt", "Lt"},
    "pathType": {"Exact", "Prefix", "ImplementationSpecific"},
    "podAntiAffinityType": {"preferred", "required"},
    "policyTypes": {"Ingress", "Egress"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "seccompProfile.type": {"RuntimeDefault"},
    "topologyKey": {"kubernetes.io/hostname", "topology.kubernetes.io/zone", "topology.kubernetes.io/region"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
}
"""The values of a field, where the definitions of Kubernetes or of an operator say only that it is a string."""
LEAST = {
    **dict.fromkeys(
        ("failureThreshold", "instances", "maxSkew", "periodSeconds", "pollingInterval", "timeoutSeconds"), 1
    ),
    "terminationGracePeriodSeconds": 30,
}
"""The smallest numbers; a pod has time to finish what it has begun."""
IDENTITIES = {"items": "key", "secretTargetRef": "parameter", "volumeMounts": "mountPath"}
"""The field that tells the entries of a list apart, if it is not `name`."""
KEPT_BY_CLOUDNATIVE_PG = re.compile(
    "allow_(alter_system|system_table_mods)|archive_.*|bonjour.*|cluster_name|config_file|data_(directory|sync_retry)"
    "|event_source|external_pid_file|full_page_writes|hba_file|hot_standby|huge_pages|ident_file|jit_provider|listen_addresses"
    "|log_(destination|directory|file_mode|filename|rotation_.*|truncate_on_rotation)|logging_collector|port|primary_.*"
    "|promote_trigger_file|recovery_.*|restart_after_crash|restore_command|shared_preload_libraries|ssl(_.*)?"
    "|stats_temp_directory|synchronous_standby_names|syslog_.*|unix_socket_.*|wal_(level|log_hints)"
)
"""Parameters of Postgres that CloudNativePG sets or refuses."""
NUMBER, TRUTH, ANY = r"\d+(\.\d+)?", "true|false", ".+"
OF_RABBITMQ_TRIGGER = {
    "host": ANY,
    "protocol": "auto|amqp|http",
    "mode": "QueueLength|MessageRate|DeliverGetRate|PublishedToDeliveredRatio|ExpectedQueueConsumptionTime",
    "value": NUMBER,
    "activationValue": NUMBER,
    "queueName": ANY,
    "vhostName": ANY,
    "unsafeSsl": TRUTH,
    "timeout": r"\d+",
    "useRegex": TRUTH,
    "pageSize": r"[1-9]\d*",
    "operation": "sum|max|avg",
    "excludeUnacknowledged": TRUTH,
}
"""What KEDA's trigger of this type understands, of which its definition knows nothing."""
OLDEST_RABBITMQ = (4, 2, 4)
UNUSABLE_RABBITMQ = ((4, 2, 6), (4, 3, 0))
"""Gateways cannot connect to these."""
LEGACY_PROBE = "rabbitmq.com/legacy-startup-probe"


@cache
def _definitions_of_kubernetes(version: str) -> Registry[Any]:
    contents = schema_contents(SCHEMA.format(version=version, name="_definitions"), version)
    registry: Registry[Any] = Resource.from_contents(contents) @ Registry()
    return registry


@cache
def _validator_of_kubernetes(api_version: str, kind: str, version: str) -> Draft202012Validator:
    """The package's own `validate` reads all schemas anew for each object."""
    group, _, number = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], number)))
    schema = schema_contents(SCHEMA.format(version=version, name=name), version)
    return Draft202012Validator(schema, registry=_definitions_of_kubernetes(version))


@cache
def _errors_of_kubernetes(text: str, version: str) -> list[str]:
    """The errors in an object as JSON; most objects of one build are those of another."""
    each = json.loads(text)
    return [
        error.message for error in _validator_of_kubernetes(each["apiVersion"], each["kind"], version).iter_errors(each)
    ]


def quantity(value: object) -> float:
    """A Kubernetes quantity as a number; raises ValueError for anything else."""
    if not (found := QUANTITY.fullmatch(str(value))):
        raise ValueError(f"{value} is no quantity")
    unit = found[2]
    if unit.endswith("i"):
        return float(found[1]) * 1024.0 ** ("KMGTPE".index(unit[0]) + 1)
    return float(found[1]) * 1000.0 ** ("num kMGTPE".index(unit or " ") - 3)


def complaints_about(each: Object) -> list[str]:
    """Everything that is wrong with an object; raises KeyError for a kind without a definition."""
    rule = RULES.get(each["kind"])
    return [*_of_schema(each), *_of_fields(each), *(rule(each) if rule else ())]


def is_custom(each: Object) -> bool:
    """Whether its kind is an operator's and not Kubernetes' own."""
    group = _group_of(each)
    return group in WITHOUT_DEFINITION or ("." in group and not group.endswith(".k8s.io"))


def _group_of(each: Object) -> str:
    return str(each["apiVersion"]).rpartition("/")[0]


def _of_schema(each: Object) -> Iterator[str]:
    if not is_custom(each):
        for version in VERSIONS:
            yield from (f"{version}: {error}" for error in _errors_of_kubernetes(json.dumps(each), version))
    elif (each["apiVersion"], each["kind"]) in definitions() or _group_of(each) not in WITHOUT_DEFINITION:
        yield from complaints_of_definition(each)


def _of_fields(value: Any, name: str = "", parent: str = "") -> Iterator[str]:
    """What is wrong with a field wherever it is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("annotations", "data", "labels", "matchLabels", "metadata", "nodeSelector"):
                yield from _of_fields(inner, key, name)
    elif isinstance(value, list):
        identity = IDENTITIES.get(name, "name")
        named = [item[identity] for item in value if isinstance(item, dict) and identity in item]
        if len(named) != len(set(named)):
            yield f"{name}: two have the same {identity} among {named}"
        for item in value:
            yield from _of_fields(item, name, parent)
    elif value is not None:
        yield from _of_value(value, name, parent)


def _of_value(value: Any, name: str, parent: str) -> Iterator[str]:
    choices = CHOICES.get(name) or CHOICES.get(f"{parent}.{name}")
    if choices and value not in choices:
        yield f"{name}: {value} is none of {sorted(choices)}"
    if name in QUANTITIES and not QUANTITY.fullmatch(str(value)):
        yield f"{name}: {value} is no quantity"
    if name in LEAST and isinstance(value, int) and value < LEAST[name]:
        yield f"{name}: {value} is less than {LEAST[name]}"


def _of_cluster(each: Object) -> Iterator[str]:
    parameters = each["spec"].get("postgresql", {}).get("parameters", {})
    yield from (f"{name} is CloudNativePG's" for name in parameters if KEPT_BY_CLOUDNATIVE_PG.fullmatch(name))


def _of_rabbitmq(each: Object) -> Iterator[str]:
    found = re.fullmatch(r".+:(\d+)\.(\d+)\.(\d+)-management(-alpine)?(@sha256:\w+)?", each["spec"]["image"])
    version = tuple(int(found[number]) for number in (1, 2, 3)) if found else ()
    is_legacy = each["metadata"].get("annotations", {}).get(LEGACY_PROBE) == "true"
    if version in UNUSABLE_RABBITMQ or version < ((4, 1) if is_legacy else OLDEST_RABBITMQ):
        yield f"image: {each['spec']['image']} does not fit the operator, or Inkwell"
    pod = each["spec"].get("override", {}).get("statefulSet", {}).get("spec", {}).get("template", {}).get("spec", {})
    for kind, known in (("initContainers", "setup-container"), ("containers", "rabbitmq")):
        for container in pod.get(kind, []):
            if container["name"] != known and "image" not in container:
                yield f"{kind}: {container['name']} is new, and has no image"


def _of_scaled_object(each: Object) -> Iterator[str]:
    for trigger in each["spec"]["triggers"]:
        metadata = trigger["metadata"]
        for name, value in metadata.items():
            if not re.fullmatch(OF_RABBITMQ_TRIGGER.get(name, "(?!)"), value):
                yield f"{name}: {value} is not understood"
        if metadata.keys() & {"pageSize", "operation"} and metadata.get("useRegex") != "true":
            yield "pageSize and operation have an effect with useRegex alone"
        if "excludeUnacknowledged" in metadata and metadata.get("protocol") != "http":
            yield "excludeUnacknowledged has an effect over http alone"


def _of_scheduled_backup(each: Object) -> Iterator[str]:
    if len(each["spec"]["schedule"].split()) != 6:
        yield "schedule: has six fields, of which the first is the second"
    if each["spec"].get("method") != "plugin":
        yield "method: the manifests have no other store than the plugin's"


RULES: dict[str, Callable[[Object], Iterator[str]]] = {
    "Cluster": _of_cluster,
    "RabbitmqCluster": _of_rabbitmq,
    "ScaledObject": _of_scaled_object,
    "ScheduledBackup": _of_scheduled_backup,
}
