"""The scenarios: which request, by which contenders, on which data."""

from dataclasses import dataclass

from bench.contenders import BARE, BARE_UVICORN, DIRECT, INKWELL, INKWELL_8, INKWELL_202, NAIVE, SILENT
from bench.database import ONE_TEXT, RARE_WORD, texts_of

LISTED_NOTES = 100
"""The number of an owner's notes for reads and replacements, and so the length of a list."""

SEARCHED_NOTES = 100_000

ALL_PARTITIONS = 64
"""This many owners have commands in every partition."""

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
    searched_notes: int = 0
    """This many notes with different texts."""
    changing: bool = False
    """Whether every list has changed since the previous read."""
    turns: int = 1
    """Measurements of each contender in a round: more and shorter ones where contenders hardly differ."""

    @property
    def base(self) -> str:
        """The contender with which the others are compared."""
        return self.contenders[0]

    @property
    def notes_per_owner(self) -> int:
        """The number of notes before the first request."""
        return 0 if self.method == "POST" else self.searched_notes or LISTED_NOTES

    @property
    def texts(self) -> str:
        """The title and the description of each note, as SQL."""
        return texts_of(self.searched_notes) if self.searched_notes else ONE_TEXT

    def requests(self, owners: int) -> int:
        """The number of different requests."""
        return owners * max(1, self.notes_per_owner if "{id}" in self.path else 1)


SCENARIOS = {
    "create": Scenario("Create a note", "POST", "/notes/", (DIRECT, INKWELL, INKWELL_202, INKWELL_8, NAIVE, BARE)),
    "replace": Scenario("Replace a note", "PUT", "/notes/{id}", (DIRECT, INKWELL, INKWELL_8)),
    "get": Scenario("Get one note", "GET", "/notes/{id}", (DIRECT, INKWELL, BARE)),
    "get-front": Scenario(
        "Get one note, against a server that looks nothing up",
        "GET",
        "/notes/{id}",
        (BARE_UVICORN, BARE, INKWELL),
        (64,),
    ),
    "list": Scenario("List 100 notes that have not changed", "GET", "/notes/", (DIRECT, INKWELL)),
    "list-changed": Scenario(
        "List 100 notes that have changed since", "GET", "/notes/", (DIRECT, INKWELL), (64,), changing=True
    ),
    "search": Scenario(
        f"Search {SEARCHED_NOTES:,} notes for a rare word",
        *(
            "GET",
            f"/notes/search?q={RARE_WORD}",
            (DIRECT, INKWELL),
            (1,),
        ),  # with more, the direct contender answers nothing
        searched_notes=SEARCHED_NOTES,
    ),
    "slow": Scenario(
        "Create a note, Postgres 100 ms slower", "POST", "/notes/", (DIRECT, INKWELL, INKWELL_202), (64,), True
    ),
    "create-telemetry": Scenario(
        "Create a note, without telemetry and with it", "POST", "/notes/", (SILENT, INKWELL), (64,), turns=12
    ),
    "get-telemetry": Scenario(
        "Get one note, without telemetry and with it", "GET", "/notes/{id}", (SILENT, INKWELL), (64,), turns=12
    ),
}


ALONE = ("search", "create-telemetry", "get-telemetry")
"""Here Inkwell has only one owner, too."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A scenario under one load."""

    scenario: str
    contender: str
    owners: int
    connections: int


def cells(scenario: str, connections: int, owners: list[int]) -> list[Cell]:
    """The contenders measured in turn; only Inkwell has owners."""
    return [
        Cell(scenario, contender, count, connections)
        for contender in SCENARIOS[scenario].contenders
        for count in _owners(scenario, contender, owners)
    ]


def _owners(scenario: str, contender: str, owners: list[int]) -> list[int]:
    """The contender's configuration: several partitions are for several owners."""
    if contender == INKWELL_8:
        return owners[-1:]
    return owners if contender in (INKWELL, INKWELL_202) and scenario not in ALONE else owners[:1]
