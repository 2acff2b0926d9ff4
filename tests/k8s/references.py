"""The names by which an overlay's objects refer to others."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tests.k8s.passwords import secrets_of
from tests.support.rendering import fields_of, name_of, objects_of

CREDENTIALS = ("username", "password")
REFERENCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "authenticationRef": ("TriggerAuthentication", ()),
    "backendRefs": ("Service", ()),
    "barmanObjectName": ("ObjectStore", ()),
    "caSecretName": ("Secret", ("ca.crt",)),
    "cluster": ("Cluster", ()),
    "configMap": ("ConfigMap", ()),
    "configMapRef": ("ConfigMap", ()),
    "configMapRefs": ("ConfigMap", ()),
    "imagePullSecrets": ("Secret", ()),
    "importCredentialsSecret": ("Secret", CREDENTIALS),
    "issuerRef": ("Issuer", ()),
    "passwordSecret": ("Secret", CREDENTIALS),
    "rabbitmqClusterReference": ("RabbitmqCluster", ()),
    "scaleTargetRef": ("Deployment", ()),
    "secret": ("Secret", CREDENTIALS),
    "secretKeyRef": ("Secret", ()),
    "secretName": ("Secret", ()),
    "secretTargetRef": ("Secret", ()),
    "service": ("Service", ()),
    "serviceAccountName": ("ServiceAccount", ()),
    "serviceName": ("Service", ()),
    "tls": ("Secret", ("tls.crt", "tls.key")),
}
"""The kind that each field refers to, and the keys that it needs if the reference names none."""
ELSEWHERE = ("metricRelabelings", "parentRefs", "s3Credentials")
"""Fields of such a name that refer to nothing, or to what a platform team has."""
LIKE_A_REFERENCE = re.compile(r"(Refs?|References?|Secrets?|SecretName|ConfigMaps?)$", re.IGNORECASE)


class Target(NamedTuple):
    """A target of references: an object, or a key in it."""

    kind: str
    name: str
    key: str | None = None


def references_of(overlay: str) -> Iterator[tuple[str, Target]]:
    """Each object with the targets of its references."""
    for each in objects_of(overlay):
        for field, value in fields_of(each):
            if field in REFERENCES:
                yield from ((name_of(each), target) for target in _targets(value, *REFERENCES[field]))
            elif LIKE_A_REFERENCE.search(field) and field not in ELSEWHERE:
                named = [one for one in _listed(value) if isinstance(one, dict) and "name" in one]
                assert not named, f"{name_of(each)}: {field} is not understood"


def there(overlay: str) -> Iterator[Target]:
    """All possible targets."""
    for each in objects_of(overlay):
        yield Target(each["kind"], each["metadata"]["name"])
        if each["kind"] == "ConfigMap":
            yield from _with_keys(each["kind"], each["metadata"]["name"], each["data"])
        elif each["kind"] == "Certificate":
            yield from _with_keys("Secret", each["spec"]["secretName"], ("ca.crt", "tls.crt", "tls.key"))
        elif each["kind"] == "Cluster":
            yield from _with_keys("Secret", f"{each['metadata']['name']}-ca", ("ca.crt", "ca.key"))
    for name, held in secrets_of(overlay).items():
        yield from _with_keys("Secret", name, held)


def _targets(value: Any, kind: str, keys: tuple[str, ...]) -> Iterator[Target]:
    for each in _listed(value):
        if isinstance(each, str):
            yield from _with_keys(kind, each, keys)
        elif name := each.get("name") or each.get("secretName"):
            given = [item["key"] for item in [each, *each.get("items", [])] if "key" in item]
            yield from _with_keys(each.get("kind", kind), name, given or keys)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _with_keys(kind: str, name: str, keys: Iterable[str]) -> Iterator[Target]:
    yield Target(kind, name)
    yield from (Target(kind, name, key) for key in keys)
