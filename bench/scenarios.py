"""What is measured: which request, against whom, on which data."""

from dataclasses import dataclass

from bench.contenders import BARE, BARE_UVICORN, DIRECT, INKWELL, INKWELL_8, INKWELL_202, NAIVE, SILENT
from bench.database import ONE_TEXT, RARE_WORD, texts_of

LISTED_NOTES = 100
"""How many notes an owner has where notes are read or replaced, and so how many a list returns."""

SEARCHED_NOTES = 100_000

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
    searched_notes: int = 0
    """So many notes with texts that differ."""
    changing: bool = False
    """Whether every list has changed since the one before."""
    turns: int = 1
    """How many times in a round its contenders are measured: often, where they hardly differ, and each time for as much
    shorter."""

    @property
    def base(self) -> str:
        """Whom the others are compared with."""
        return self.contenders[0]

    @property
    def notes_per_owner(self) -> int:
        """How many notes there are before the first request."""
        return 0 if self.method == "POST" else self.searched_notes or LISTED_NOTES

    @property
    def texts(self) -> str:
        """The title and the description of each, as SQL."""
        return texts_of(self.searched_notes) if self.searched_notes else ONE_TEXT

    def requests(self, owners: int) -> int:
        """How many of its requests differ."""
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
        *("GET", f"/notes/search?q={RARE_WORD}", (DIRECT, INKWELL), (1,)),  # more, and the direct way answers nothing
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
"""Here Inkwell too has one owner only."""


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
        for count in _owners(scenario, contender, owners)
    ]


def _owners(scenario: str, contender: str, owners: list[int]) -> list[int]:
    """What this contender is measured with: several partitions are for several owners."""
    if contender == INKWELL_8:
        return owners[-1:]
    return owners if contender in (INKWELL, INKWELL_202) and scenario not in ALONE else owners[:1]
