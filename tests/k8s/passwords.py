"""The content of an overlay's Secrets: its own, or those that docs/kubernetes.md creates for it."""

import re
from base64 import b64decode
from collections.abc import Iterator
from functools import cache
from hashlib import sha256

from dev.backend import ROOT
from tests.support.rendering import objects_of

CERTIFICATE = {"tls.crt": "a certificate", "tls.key": "its key"}


@cache
def secrets_of(overlay: str) -> dict[str, dict[str, str]]:
    """The content of each Secret by its name."""
    own = [each for each in objects_of(overlay) if each["kind"] == "Secret"]
    return {
        each["metadata"]["name"]: {key: b64decode(value).decode() for key, value in each["data"].items()}
        for each in own
    } or dict(_documented())


def _documented() -> Iterator[tuple[str, dict[str, str]]]:
    page = (ROOT / "docs/kubernetes.md").read_text()
    for name, literals in re.findall(r"create secret (?:generic|docker-registry) (\S+)(.*)", page.replace("\\\n", "")):
        values = re.findall(r'--from-literal=([\w-]+)="?([^\s"]+)', literals)
        yield name, {key: _with_passwords(value, f"{name} {key}") for key, value in values}
    for name in re.findall(r"`([\w-]+)`, a certificate", page):
        yield name, CERTIFICATE


def _with_passwords(value: str, place: str) -> str:
    """The value that the shell produces: a password of its own for each place or variable."""

    def password(found: re.Match[str]) -> str:
        return sha256((found[1] or place).encode()).hexdigest()

    return re.sub(r"\$\(password\)|\$(\w+)", password, value)
