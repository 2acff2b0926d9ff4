"""Writes whose key is known, and so the id of their command, whatever was answered."""

from dataclasses import dataclass

from gateway.http.idempotency import build_command_id
from shared.contracts import fold_name
from tests.faults.history import Write

TYPES = {
    "register": "user.register",
    "rename": "user.change",
    "password": "user.change",
    "leave": "user.delete",
    "token": "token.create",
    "revoke": "token.revoke",
    "create": "note.create",
    "replace": "note.replace",
    "patch": "note.patch",
    "touch": "note.patch",
    "delete": "note.delete",
    "restore": "note.restore",
    "purge": "note.purge",
    "batch": "notes.change",
    "swap": "notes.change",
    "import": "notes.change",
}
"""The type of each kind of write's command."""


@dataclass(slots=True)
class KeyedWrite(Write):
    """A write that has a key; the marker of a `revoke` is the token's id."""

    @property
    def id(self) -> str:
        """The id of its command."""
        namespace = f"user:{fold_name(self.marker)}" if self.kind == "register" else self.owner
        target = {"revoke": self.marker, "batch": None}.get(self.kind, self.note)
        return str(build_command_id(namespace, TYPES[self.kind], target, self.key))
