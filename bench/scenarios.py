"""What is measured: which request, against whom, on which data."""

from dataclasses import dataclass

from bench.contenders import BARE, DIRECT, INKWELL, INKWELL_202, NAIVE

LISTED_NOTES = 100
"""How many notes an owner has where notes are read or replaced, and so how many a list returns."""

ALL_PARTITIONS = 64
"""So many owners have commands in every partition."""

CONNECTIONS = (1, 16, 64, 256)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One request, repeated."""

    title: str
    method: str
    path: str
    contenders: tuple[str, ...]
    connections: tuple[int, ...] = CONNECTIONS
    slow_database: bool = False

    @property
    def notes_per_owner(self) -> int:
        """How many notes there are before the first request."""
        return 0 if self.method == "POST" else LISTED_NOTES


SCENARIOS = {
    "create": Scenario("Create a note", "POST", "/notes/", (DIRECT, INKWELL, INKWELL_202, NAIVE, BARE)),
    "replace": Scenario("Replace a note", "PUT", "/notes/{id}", (DIRECT, INKWELL)),
    "get": Scenario("Get one note", "GET", "/notes/{id}", (DIRECT, INKWELL, BARE)),
    "list": Scenario("List 100 notes", "GET", "/notes/", (DIRECT, INKWELL)),
    "slow": Scenario(
        "Create a note, Postgres 100 ms slower", "POST", "/notes/", (DIRECT, INKWELL, INKWELL_202), (64,), True
    ),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A scenario under one load."""

    scenario: str
    contender: str
    owners: int
    connections: int


def cells(scenario: str, connections: int, owners: list[int]) -> list[Cell]:
    """What is measured in turn, one right after the other; only Inkwell knows owners."""
    return [
        Cell(scenario, contender, count, connections)
        for contender in SCENARIOS[scenario].contenders
        for count in (owners if contender in (INKWELL, INKWELL_202) else owners[:1])
    ]
