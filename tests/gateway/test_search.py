"""Search: by words, by similar titles if no note has them, and always among the owner's own notes."""

import httpx
import pytest
from asyncpg import Connection, Record

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import sign_up

NOTES = [
    ("Buying ink", "a bottle of blue ink, and two pens"),
    ("Pens", "the red ones write best"),
    ("Receive the parcel", "on Tuesday"),
    ("Über die Tinte", "blau und schwarz"),
    ("Letters", "blue"),
]
MANY = """
insert into notes (owner_id, title, description, created_date, updated_date, version)
select 1, 'note ' || n, case when n % $2 = 0 then 'common' else '' end, now(), now(), 1 from generate_series(1, $1) as n
"""


@pytest.fixture(scope="module")
async def library(shared_client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client of a gateway with some notes, which are never changed."""
    await write(shared_client)
    return shared_client


async def write(client: httpx.AsyncClient) -> None:
    for title, description in NOTES:
        await client.post("/notes", json={"title": title, "description": description})


async def found(client: httpx.AsyncClient, q: str, **parameters: str | int) -> list[str]:
    response = await client.get("/notes/search", params={"q": q, **parameters})
    assert response.status_code == 200, response.text
    return [note["title"] for note in response.json()["notes"]]


@pytest.mark.parametrize(
    ("q", "titles"),
    [
        ("ink", ["Buying ink"]),
        ("INK", ["Buying ink"]),
        ("buy", ["Buying ink"]),
        ("blue ink", ["Buying ink"]),
        ('"blue ink"', ["Buying ink"]),
        ("pen", ["Pens", "Buying ink"]),
        ("blue -ink", ["Letters"]),
        ("blue -- ink", ["Buying ink"]),
        ("blue " + "-" * 101 + "ink", ["Letters"]),
        ("tuesday or schwarz", ["Über die Tinte", "Receive the parcel"]),
        ("tinte", ["Über die Tinte"]),
    ],
)
async def test_search_finds_words_the_best_match_first(library: httpx.AsyncClient, q: str, titles: list[str]) -> None:
    assert await found(library, q) == titles


async def test_what_is_found_is_the_note_as_it_is_read(library: httpx.AsyncClient) -> None:
    response = await library.get("/notes/search?q=parcel")

    assert response.json() == {
        "matched": "words",
        "limited": False,
        "total": 1,
        "notes": [(await library.get("/notes/3")).json()],
    }


@pytest.mark.parametrize("q", ["recieve", "parsel", "Recive teh parcel"])
async def test_search_without_a_match_finds_similar_titles(library: httpx.AsyncClient, q: str) -> None:
    response = await library.get("/notes/search", params={"q": q})

    assert response.json()["matched"] == "similar_titles"
    assert len(response.json()["notes"]) == 1


@pytest.mark.parametrize(
    "q", ["qwxz", "of", "-", '"', "%", "a & | ! <-> b", "\\", "🖋", "x" * 200, "-" * 200, "- " * 100, "(-" * 100]
)
async def test_anything_can_be_searched_for(library: httpx.AsyncClient, q: str) -> None:
    response = await library.get("/notes/search", params={"q": q})

    assert response.status_code == 200
    assert response.json()["notes"] == []


async def test_similar_titles_are_not_found_where_a_word_is_excluded(library: httpx.AsyncClient) -> None:
    assert await found(library, "recieve -parcel") == []


async def test_pages_of_a_search_follow_its_links(library: httpx.AsyncClient) -> None:
    first = await library.get("/notes/search?q=pens or blue&limit=2")
    second = await library.get(first.links["next"]["url"])

    assert (first.json()["total"], second.json()["total"]) == (3, 3)
    titles = [note["title"] for response in (first, second) for note in response.json()["notes"]]
    assert sorted(titles) == ["Buying ink", "Letters", "Pens"]
    assert "next" not in second.links
    assert second.links["prev"]["url"] == "/notes/search?q=pens+or+blue&limit=2&skip=0"


async def test_word_that_is_new_is_found_in_every_note_that_has_it(
    gateway_settings: GatewaySettings, database: "Connection[Record]"
) -> None:
    await database.execute(MANY, 3000, 4000)  # in none of the notes
    await database.execute("update notes set description = 'brandnew' where id % 20 = 0 and id > 2000 or id = 1")
    settings = gateway_settings.model_copy(update={"search_matches": 50})  # so all 2,500 notes are read
    async with harness.gateway(settings) as client:
        response = (await client.get("/notes/search?q=brandnew&limit=1000")).json()
        await database.execute("update notes set description = '' where id > 2700")
        fewer = (await client.get("/notes/search?q=brandnew&limit=1000")).json()

    assert (response["limited"], response["total"], response["notes"][-1]["id"]) == (True, 50, 2020)
    assert (fewer["limited"], fewer["total"], fewer["notes"][-1]["id"]) == (False, 36, 1)


@pytest.mark.parametrize("every", [1, 200])
async def test_newest_matches_are_ranked_and_the_answer_says_that_there_are_more(
    gateway_settings: GatewaySettings, database: "Connection[Record]", every: int
) -> None:
    await database.execute(MANY, 3000, every)
    settings = gateway_settings.model_copy(update={"search_matches": 10})
    async with harness.gateway(settings) as client:
        response = (await client.get("/notes/search?q=common&limit=1000")).json()

    assert (response["limited"], response["total"]) == (True, 10)
    assert [note["id"] for note in response["notes"]] == [3000 - every * n for n in range(10)]


async def test_changed_note_is_found_by_its_new_words_alone(client: httpx.AsyncClient) -> None:
    await write(client)
    await client.patch("/notes/3", json={"title": "Return the parcel"})

    assert await found(client, "return") == ["Return the parcel"]
    assert (await client.get("/notes/search?q=receive")).json()["matched"] == "similar_titles"
    await client.delete("/notes/3")
    assert await found(client, "return") == []


async def test_search_never_finds_another_owners_notes(users_client: httpx.AsyncClient) -> None:
    ada, bob = await sign_up(users_client), await sign_up(users_client)
    await users_client.post("/notes", json={"title": "Inkwell", "description": "secret"}, headers=ada.headers)

    for q, titles in (("secret", ["Inkwell"]), ("inkwel", ["Inkwell"])):
        for person, expected in ((ada, titles), (bob, [])):
            response = await users_client.get("/notes/search", params={"q": q}, headers=person.headers)
            assert [note["title"] for note in response.json()["notes"]] == expected


@pytest.mark.parametrize(
    ("query", "parameter"),
    [("", "q"), ("q=", "q"), ("q=" + "x" * 201, "q"), ("q=%00", "q"), ("q=a&q=b", "q"), ("q=a&limit=0", "limit")],
)
async def test_bad_parameter_is_named(library: httpx.AsyncClient, query: str, parameter: str) -> None:
    response = await library.get(f"/notes/search?{query}")

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [f"/query/{parameter}"]
