"""Dead letters, what an operator did with them, and what the operator's commands printed: evidence for the checks."""

from dataclasses import dataclass, field

from tests.faults.clients import POISON
from tests.faults.history import PATCHED, text_of_item
from tests.faults.keyed_writes import KeyedWrite


@dataclass(slots=True)
class Operation:
    """A command of an operator: `list`, `replay` or `discard`."""

    verb: str
    ids: list[str]
    began: float
    is_forced: bool = False
    ended: float = 0.0
    code: int | None = None
    """The exit code; None if the process was killed."""
    printed: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Result and reason by command."""
    errors: str = ""


@dataclass(slots=True)
class Letters:
    """The writes that become dead letters, other writes of the same owner, and the operations."""

    writes: list[KeyedWrite]
    operations: list[Operation]

    @property
    def dead(self) -> list[KeyedWrite]:
        """The writes that Postgres refuses."""
        return [write for write in self.writes if is_dead(write)]

    @property
    def others(self) -> list[KeyedWrite]:
        """The other writes."""
        return [write for write in self.writes if not is_dead(write)]

    def naming(self, letter: KeyedWrite, verb: str) -> list[Operation]:
        """The operations with this verb on the letter."""
        return [each for each in self.operations if each.verb == verb and letter.id in each.ids]


def is_dead(write: KeyedWrite) -> bool:
    """Whether Postgres refuses it."""
    return write.marker.startswith(POISON)


def texts_of(write: KeyedWrite) -> list[str]:
    """The texts that it writes."""
    return (
        [text_of_item(write.marker, each) for each in range(PATCHED + 1)] if write.kind == "batch" else [write.marker]
    )
