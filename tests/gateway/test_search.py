"""Search: by words, then by text, by what is similar where there is neither, and always among the owner's own notes."""

from collections.abc import AsyncIterator

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
NOTE = """
insert into notes (owner_id, title, description, created_date, updated_date, version)
select 1, title, '', now(), now(), 1 from unnest($1::text[]) as title
"""
SLOW_SIMILARITY = """
create or replace function word_similarity(text, text) returns real immutable language sql
as 'select case when pg_sleep(5)::text is not null then 1.0::real end'
"""
SLOW_TEXT = """
create or replace function inkwell_pattern(value text) returns text immutable language sql
as 'select case when pg_sleep(5)::text is not null then value end'
"""
INK = ["inks", "the ink", "an ink", "drink", "blink", "thinking"]
"""What a search for `ink` finds: the words, and then the text, the newest first."""
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


@pytest.mark.parametrize("q", ["recieve", "parsel", "Recive teh parcel", "tusday", "shcwarz", "botle"])
async def test_search_without_a_match_finds_similar_words(library: httpx.AsyncClient, q: str) -> None:
    response = await library.get("/notes/search", params={"q": q})

    assert response.json()["matched"] == "similar"
    assert len(response.json()["notes"]) == 1


@pytest.mark.parametrize(
    ("q", "titles"),
    [
        ("of", ["Buying ink"]),
        ("ottle", ["Buying ink"]),
        ("und", ["Über die Tinte"]),
        ("K", ["Buying ink"]),
        ("ink, and", ["Buying ink"]),
        ('"ink, and"', ["Buying ink"]),
        ("lett", ["Letters"]),
    ],
)
async def test_what_has_the_text_but_not_the_words_is_found(
    library: httpx.AsyncClient, q: str, titles: list[str]
) -> None:
    assert set(titles) <= set(await found(library, q))


@pytest.mark.parametrize(
    "q", ["qwxz", "-", '"', "%", "a & | ! <-> b", "\\", "🖋", "x" * 200, "-" * 200, "- " * 100, "(-" * 100]
)
async def test_anything_can_be_searched_for(library: httpx.AsyncClient, q: str) -> None:
    response = await library.get("/notes/search", params={"q": q})

    assert response.status_code == 200
    assert response.json()["notes"] == []


@pytest.mark.parametrize("q", ["%", "_", "\\", "b%e", "b_ue", "\u0301", "\u200d", "\ufe0f", '"', '" "', "\u3000"])
async def test_nothing_that_is_typed_stands_for_every_text(library: httpx.AsyncClient, q: str) -> None:
    assert (await library.get("/notes/search", params={"q": q})).json()["notes"] == []


@pytest.mark.parametrize("q", ["-5", "-red", '-"blue ink"', "-red -green", "ink or -red"])
async def test_exclusions_alone_find_no_note_that_lacks_them(library: httpx.AsyncClient, q: str) -> None:
    assert await found(library, q) == []


async def test_similar_notes_are_not_found_where_a_word_is_excluded(library: httpx.AsyncClient) -> None:
    assert await found(library, "recieve -parcel") == []


@pytest.fixture
async def pages(gateway_settings: GatewaySettings, database: "Connection[Record]") -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with notes that have a word, others that have its letters, and others again."""
    await database.execute(NOTE, ["an ink", "thinking", "the ink", "blink", "pens", "drink", "inks"])
    async with harness.gateway(gateway_settings) as client:
        yield client


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
async def test_pages_have_notes_with_the_words_and_then_those_with_the_text_each_once(
    pages: httpx.AsyncClient, limit: int
) -> None:
    url, titles = f"/notes/search?q=ink&limit={limit}", []
    while url:
        response = await pages.get(url)
        assert {name: response.json()[name] for name in ("matched", "limited", "total")} == {
            "matched": "words",
            "limited": False,
            "total": 6,
        }
        titles += [note["title"] for note in response.json()["notes"]]
        url = response.links.get("next", {}).get("url", "")

    assert titles == INK


async def test_page_after_the_last_is_empty_and_says_what_matched(pages: httpx.AsyncClient) -> None:
    response = (await pages.get("/notes/search?q=hink&skip=5")).json()

    assert response == {"matched": "text", "limited": False, "total": 1, "notes": []}


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("bound", [2, 3, 5, 6])
async def test_bound_is_one_for_words_and_text_together(gateway_settings: GatewaySettings, bound: int) -> None:
    async with harness.gateway(gateway_settings.model_copy(update={"search_matches": bound})) as client:
        response = (await client.get("/notes/search?q=ink")).json()

    assert (response["limited"], response["total"]) == (bound < 6, bound)
    assert {note["title"] for note in response["notes"]} == {*INK[:bound]}


async def test_titles_with_the_text_come_before_descriptions(
    gateway_settings: GatewaySettings, database: "Connection[Record]"
) -> None:
    await database.execute(NOTE, ["blinking", "something else"])
    await database.execute("update notes set description = 'thinking' where id = 2")
    async with harness.gateway(gateway_settings) as client:
        assert await found(client, "inkin") == ["blinking", "something else"]


async def test_notes_with_the_symbols_come_before_those_with_the_words_alone(
    gateway_settings: GatewaySettings, database: "Connection[Record]"
) -> None:
    await database.execute(NOTE, ["C++ and more", "🎉 a party", "C#", "party", "C", "c c c"])
    async with harness.gateway(gateway_settings) as client:
        assert (await found(client, "C++"))[0] == "C++ and more"
        assert (await found(client, "c#"))[0] == "C#"
        assert await found(client, "party 🎉") == ["🎉 a party", "party"]


async def test_text_too_short_for_the_index_is_looked_for_in_the_newest_notes(
    gateway_settings: GatewaySettings, database: "Connection[Record]"
) -> None:
    await database.execute(NOTE, ["今天天气很好", *["note"] * 50])
    settings = gateway_settings.model_copy(update={"search_matches": 1})  # and so 50 notes are walked
    async with harness.gateway(settings) as client:
        too_old = (await client.get("/notes/search?q=天气")).json()
        indexed = (await client.get("/notes/search?q=天天气")).json()
        await database.execute("delete from notes where id = 51")
        reached = (await client.get("/notes/search?q=天气")).json()

    assert (too_old["limited"], too_old["total"]) == (True, 0)
    assert (indexed["limited"], indexed["total"], indexed["matched"]) == (False, 1, "text")
    assert (reached["limited"], reached["total"], reached["matched"]) == (False, 1, "text")


async def test_words_are_found_if_looking_for_the_text_takes_too_long(
    gateway_settings: GatewaySettings, database: "Connection[Record]"
) -> None:
    await database.execute(NOTE, ["ink", "thinking"])
    await database.execute(SLOW_TEXT)
    async with harness.gateway(gateway_settings.model_copy(update={"search_timeout_seconds": 0.2})) as client:
        with_words = (await client.get("/notes/search?q=ink")).json()
        with_text = await client.get("/notes/search?q=hink")

    assert (with_words["matched"], with_words["limited"], with_words["total"]) == ("words", True, 1)
    assert (with_text.status_code, with_text.json()["code"]) == (503, "search_timeout")


async def test_nothing_is_found_if_looking_for_what_is_similar_takes_too_long(
    gateway_settings: GatewaySettings, database: "Connection[Record]"
) -> None:
    await database.execute(NOTE, ["ink"])
    await database.execute(SLOW_SIMILARITY)
    async with harness.gateway(gateway_settings.model_copy(update={"search_timeout_seconds": 0.2})) as client:
        response = await client.get("/notes/search?q=inkk")

    assert response.status_code == 200
    assert (response.json()["limited"], response.json()["total"]) == (True, 0)


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
async def test_newest_matches_are_ranked_and_the_response_says_that_there_are_more(
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
    assert await found(client, "receive") == []
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
