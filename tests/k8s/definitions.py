"""Validates custom resources as an API server does, strictly, against the full definitions of their operators.

The definitions are files in the folder CRDS_DIR: with a cluster that has the operators, write each of them with
`kubectl get customresourcedefinition NAME --output yaml`.
"""

import os
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from tests.support.rendering import Object

OWN_FOLDER = Path(__file__).parent / "crds"
VALUES = ("description", "default", "nullable", "format", "example", "externalDocs", "title")
"""Keywords that are no JSON Schema, or mean something else there."""
INTEGERS = {"int32": 2**31, "int64": 2**63}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {name: {"type": "string"} for name in ("name", "namespace")}
    | {name: {"type": "object", "additionalProperties": {"type": "string"}} for name in ("labels", "annotations")},
}


def folder() -> Path:
    """The folder of the definitions; skips the test without it."""
    if not (given := os.environ.get("CRDS_DIR")):
        pytest.skip(
            "needs CRDS_DIR, a folder of operators' definitions: `kubectl get customresourcedefinition NAME -o yaml`"
        )
    return Path(given)


@cache
def definitions() -> dict[tuple[str, str], Object]:
    """The structural schema of each API version and kind."""
    paths = [*OWN_FOLDER.glob("*.yaml"), *folder().rglob("*.yaml")]  # of two definitions of a kind, the later counts
    documents = [each for path in paths for each in yaml.safe_load_all(path.read_text())]
    return {
        (f"{each['spec']['group']}/{version['name']}", each["spec"]["names"]["kind"]): version["schema"][
            "openAPIV3Schema"
        ]
        for each in documents
        if each and each["kind"] == "CustomResourceDefinition"
        for version in each["spec"]["versions"]
    }


def complaints_of_definition(each: Object) -> Iterator[str]:
    """The errors that an API server finds in an object of a known kind; rules about changes are not evaluated."""
    schema = definitions()[each["apiVersion"], each["kind"]]
    if error := best_match(_validator(each["apiVersion"], each["kind"]).iter_errors(each)):
        yield f"{error.json_path}: {error.message[:300]}"
        return
    filled = deepcopy(each)
    for _, here, value in _walk(schema, filled, "$"):
        _fill_defaults(here, value)
    for place, here, value in _walk(schema, filled, "$"):
        if here.get("x-kubernetes-list-type") in ("map", "set"):
            keys = here.get("x-kubernetes-list-map-keys", [])
            seen = [str([item.get(key) for key in keys] if keys else item) for item in value]
            if len(seen) != len(set(seen)):
                yield f"{place}: two entries have the same {', '.join(keys)}"
        for rule in here.get("x-kubernetes-validations", []):
            if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": value}):
                yield f"{place}: {rule.get('message') or rule['rule']}"


@cache
def _validator(api_version: str, kind: str) -> Draft202012Validator:
    schema = _strict(definitions()[api_version, kind])
    schema["properties"] = {name: value for name, value in schema["properties"].items() if name != "status"}
    schema["properties"] |= {"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": METADATA}
    return Draft202012Validator(schema | {"required": [*schema.get("required", []), "metadata"]})


def _strict(schema: Object, *, declares: bool = True) -> Object:
    """The JSON Schema of a structural schema, to which unknown fields are errors.

    What is below `allOf` and the like declares no fields, and forbids none.
    """
    strict = {key: value for key, value in schema.items() if key not in VALUES and not key.startswith("x-kubernetes-")}
    for key in strict.keys() & {"allOf", "anyOf", "oneOf"}:
        strict[key] = [_strict(each, declares=False) for each in strict[key]]
    for key in strict.keys() & {"additionalProperties", "items"}:
        if isinstance(strict[key], dict):
            strict[key] = _strict(strict[key], declares=declares)
    if "properties" in strict:
        strict["properties"] = {name: _strict(each, declares=declares) for name, each in strict["properties"].items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if declares and schema.get("type") == "object" and not is_open:
        strict.setdefault("additionalProperties", False)
    return strict | _values_of(schema)


def _values_of(schema: Object) -> Object:
    """What Kubernetes' own keywords say about values."""
    values: Object = {}
    if schema.get("x-kubernetes-int-or-string"):
        values["type"] = ["integer", "string"]
    elif schema.get("nullable"):
        values["type"] = [schema["type"], "null"]
    if bound := INTEGERS.get(schema.get("format", "")):
        values["minimum"] = max(schema.get("minimum", -bound), -bound)
        values["maximum"] = min(schema.get("maximum", bound - 1), bound - 1)
    return values


def _walk(schema: Object, value: Any, place: str) -> Iterator[tuple[str, Object, Any]]:
    """Each value with its place and its schema, outer ones first, so that defaults of a field are among them."""
    yield place, schema, value
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, inner in list(value.items()):
            if below := schema.get("properties", {}).get(name, others if isinstance(others, dict) else None):
                yield from _walk(below, inner, f"{place}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk(schema.get("items", {}), inner, f"{place}[{number}]")


def _fill_defaults(schema: Object, value: Any) -> None:
    if isinstance(value, dict):
        for name, below in schema.get("properties", {}).items():
            if "default" in below:
                value.setdefault(name, deepcopy(below["default"]))
