"""Lists in every order, page by page, while notes are written."""

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import pytest
from asyncpg import Connection, Record

from dev.backend import Services
from tests.support import harness
from tests.support.isolation import fresh_database, settings_of_gateway

NOTES = """
insert into notes (owner_id, title, description, created_date, updated_date, version)
select 1, title, '', timestamptz '2026-01-01' + day * interval '1 day',
  timestamptz '2026-02-01' - day * interval '1 day', 1
from unnest($1::text[], $2::int[]) as row (title, day)
"""
NOT_TIMES = [
    *("", "now", "99999", "1767225600", "%2B1767225600.5", "20260101000000", "20260101T000000Z", "2026-W01-4"),
    *("2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00Z", "2026-01-01T00:00:00+00:00", "2026-1-1T00:00:00Z"),
    *("2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z"),
    *("2026-01-01T00:00:60Z", "2026-01-01T00:00:61Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00,5Z"),
    *("2026-01-01T00:00:00%2B0000", "2026-01-01T00:00:00%2B00", "2026-01-01T00:00:00%2B24:00"),
    *("2026-01-01T00:00:00%2B00:60", "2026-01-01T00:00:00%2B00:00:00", "2026-01-01T00:00:00Zulu"),
    *("2026-01-01T00:00:00%E2%88%9200:00", "2026-01-01T00:00:00Z%0A", "%202026-01-01T00:00:00Z"),
    *("2026-01-01%0900:00:00Z", "2026-01-01_00:00:00Z", "2026-01-01T00:00:0%D9%A1Z", "%D9%A2026-01-01T00:00:00Z"),
    *("0000-12-31T23:59:59Z", "10000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z"),
]
"""Including a `+` in an offset that is not percent-encoded, which means a space in a query."""
MICROSECONDS = """
insert into notes (owner_id, title, description, created_date, updated_date, version)
select 1, '', '', time, time, 1
from generate_series(-1, 5) as number, lateral (select timestamptz '2026-01-01' + number * interval '1 us') as at (time)
"""
TITLES = ["pear", "Apple", "fig", "apple", "Éclair", "zebra", "fig"]
CHANCE = random.Random(8)  # noqa: S311 - no secret
DAYS = [3, 1, 2, 2, 5, 4, 0]


ORDERS = ["id", "-id", "created", "-created", "updated", "-updated", "title", "-title"]


@pytest.fixture(scope="module")
async def seven(servers: Services, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with seven notes with ids 1 to 7, which are never changed."""
    async with fresh_database(servers, template) as url:
        database = await asyncpg.connect(url)
        await database.execute(NOTES, TITLES, DAYS)
        await database.close()
        async with harness.gateway(settings_of_gateway(servers, url, "no-writes")) as client:
            yield client


@pytest.fixture(scope="module")
async def microseconds(servers: Services, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """As `seven`, with notes a microsecond apart, the second of which is the first of 2026."""
    async with fresh_database(servers, template) as url:
        database = await asyncpg.connect(url)
        await database.execute(MICROSECONDS)
        await database.close()
        async with harness.gateway(settings_of_gateway(servers, url, "no-writes")) as client:
            yield client


async def ids(client: httpx.AsyncClient, url: str) -> list[int]:
    response = await client.get(url)
    assert response.status_code == 200, response.text
    return [note["id"] for note in response.json()]


async def pages(client: httpx.AsyncClient, url: str, rel: str = "next") -> list[list[int]]:
    """The ids on each page, following links from this one."""
    found = []
    while url:
        response = await client.get(url)
        assert response.status_code == 200, response.text
        found.append([note["id"] for note in response.json()])
        url = response.links.get(rel, {}).get("url", "")
    return found


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("id", [1, 2, 3, 4, 5, 6, 7]),
        ("created", [7, 2, 3, 4, 1, 6, 5]),
        ("updated", [5, 6, 1, 3, 4, 2, 7]),
        ("title", [2, 4, 3, 7, 1, 6, 5]),
    ],
)
async def test_list_is_in_the_order_that_was_asked_for_both_ways(
    seven: httpx.AsyncClient, sort: str, expected: list[int]
) -> None:
    assert await ids(seven, f"/notes?sort={sort}") == expected
    assert await ids(seven, f"/notes?sort=-{sort}") == expected[::-1]


@pytest.mark.parametrize("sort", ORDERS)
@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_links_lead_through_all_pages_and_back(seven: httpx.AsyncClient, sort: str, limit: int) -> None:
    everything = await ids(seven, f"/notes?sort={sort}")

    forward = await pages(seven, f"/notes?sort={sort}&limit={limit}")

    assert sum(forward, []) == everything  # noqa: RUF017 - seven notes
    last = await seven.get(f"/notes?sort={sort}&limit={limit}")
    while "next" in last.links:
        last = await seven.get(last.links["next"]["url"])
    assert await pages(seven, str(last.request.url), "prev") == forward[::-1]
    assert await ids(seven, last.links["first"]["url"]) == forward[0]


async def test_links_of_a_list_with_skip_go_on_by_skip(seven: httpx.AsyncClient) -> None:
    response = await seven.get("/notes?skip=2&limit=3")

    assert [note["id"] for note in response.json()] == [3, 4, 5]
    assert response.links["next"]["url"] == "/notes?limit=3&skip=5"
    assert response.links["prev"]["url"] == "/notes?limit=3&skip=0"
    assert response.links["first"]["url"] == "/notes?limit=3"
    assert await ids(seven, response.links["next"]["url"]) == [6, 7]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("created_from=2026-01-03T00:00:00Z", [1, 3, 4, 5, 6]),
        ("created_from=2026-01-03T00:00:00Z&created_until=2026-01-05T00:00:00%2B00:00", [1, 3, 4]),
        ("updated_until=2026-01-29T00:00:00Z&sort=-id", [6, 5]),
        ("updated_from=2026-01-31T00:00:00Z", [2, 7]),
        *((f"title_prefix={prefix}", [3, 7]) for prefix in ("fig", "FIG", "f")),
        ("title_prefix=f&sort=-title", [7, 3]),
        *((f"title_prefix={prefix}", [5]) for prefix in ("%C3%89c", "E%CC%81c", "ec", "%C3%A9C")),
        ("title_prefix=a&created_until=2026-01-02T00:00:00Z", []),
        *((f"title_prefix={prefix}", []) for prefix in ("%25", "_", "f_g", "%5C", "%CC%81")),
    ],
)
async def test_list_is_filtered(seven: httpx.AsyncClient, query: str, expected: list[int]) -> None:
    assert await ids(seven, f"/notes?{query}") == expected


EVERYTHING = [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        *((f"updated_from={time}", EVERYTHING) for time in ("1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z")),
        *((f"created_until={time}", []) for time in ("1970-01-01T00:00:00Z", "0001-01-01T00:00:00%2B23:59")),
        *((f"created_until=9999-12-31T23:59:59{rest}", EVERYTHING) for rest in ("Z", ".9999999Z", "-23:59")),
        *((f"updated_from=9999-12-31T23:59:59{rest}", []) for rest in ("Z", ".9999999Z", "-23:59")),
        *((f"created_from=2026-01-04{time}", [1, 5, 6]) for time in ("t00:00:00z", "%2000:00:00Z", "+00:00:00-00:00")),
        ("created_from=2026-01-04T01:30:00%2B01:30", [1, 5, 6]),
        ("created_from=2026-01-03T18:30:00-05:30", [1, 5, 6]),
        ("created_from=2026-01-03T23:59:60Z", [1, 5, 6]),
    ],
)
async def test_every_instant_of_years_1_to_9999_is_a_bound(
    seven: httpx.AsyncClient, query: str, expected: list[int]
) -> None:
    assert await ids(seven, f"/notes?{query}") == expected


@pytest.mark.parametrize("what", ["created", "updated"])
@pytest.mark.parametrize(
    ("fraction", "since", "before"),
    [
        ("", EVERYTHING[1:], [1]),
        (".00000000000000", EVERYTHING[1:], [1]),
        (".0000001", EVERYTHING[2:], [1, 2]),
        (".000001", EVERYTHING[2:], [1, 2]),
        (".0000010", EVERYTHING[2:], [1, 2]),
        (f".000001{'0' * 2000}1", EVERYTHING[3:], [1, 2, 3]),
        (".9999999", [], EVERYTHING),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_digits_after_the_sixth_count(
    microseconds: httpx.AsyncClient, what: str, fraction: str, since: list[int], before: list[int]
) -> None:
    time = f"2026-01-01T00:00:00{fraction}Z"

    assert await ids(microseconds, f"/notes?{what}_from={time}") == since
    assert await ids(microseconds, f"/notes?{what}_until={time}") == before


async def test_links_keep_the_filters(seven: httpx.AsyncClient) -> None:
    query = "created_from=2026-01-02T00:00:00%2B00:00&sort=-title&limit=2&title_prefix=a"

    assert await pages(seven, f"/notes?{query}") == [[4, 2]]
    assert await pages(seven, "/notes?created_from=2026-01-02T00:00:00%2B00:00&limit=2") == [[1, 2], [3, 4], [5, 6]]


async def test_total_is_counted_when_asked_for(seven: httpx.AsyncClient) -> None:
    assert "x-total-count" not in (await seven.get("/notes")).headers
    response = await seven.get("/notes?total=true&limit=1&title_prefix=fig")

    assert response.headers["x-total-count"] == "2"
    assert (await seven.get(response.links["next"]["url"])).headers["x-total-count"] == "2"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("sort=colour", "sort"),
        ("sort=id&sort=title", "sort"),
        ("cursor=nonsense", "cursor"),
        ("cursor=", "cursor"),
        ("cursor=e30", "cursor"),
        ("created_from=yesterday", "created_from"),
        ("created_from=2026-01-01T00:00:00", "created_from"),
        *((f"created_from={time}", "created_from") for time in NOT_TIMES),
        ("title_prefix=", "title_prefix"),
        ("title_prefix=%00", "title_prefix"),
        ("limit=1001", "limit"),
        ("skip=-1", "skip"),
        *((f"total={word}", "total") for word in ("maybe", "1", "0", "yes", "on", "TRUE", "True", "t", "", "true%20")),
        ("colour=blue", "colour"),
    ],
)
async def test_bad_parameter_is_named(seven: httpx.AsyncClient, query: str, parameter: str) -> None:
    response = await seven.get(f"/notes?{query}")

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [f"/query/{parameter}"]


async def test_cursor_of_another_order_or_with_skip_is_refused(seven: httpx.AsyncClient) -> None:
    url = (await seven.get("/notes?sort=title&limit=2")).links["next"]["url"]

    for wrong in (url.replace("sort=title", "sort=id"), url.replace("sort=title&", ""), f"{url}&skip=1"):
        response = await seven.get(wrong)
        assert response.status_code == 422
        assert [error["pointer"] for error in response.json()["errors"]] == ["/query/cursor"]


async def test_page_has_a_tag_that_changes_with_its_links(client: httpx.AsyncClient) -> None:
    await client.post("/notes", json={"title": "one", "description": ""})
    first = await client.get("/notes?limit=1")
    known = {"If-None-Match": first.headers["etag"]}
    assert (await client.get("/notes?limit=1", headers=known)).status_code == 304

    await client.post("/notes", json={"title": "one more", "description": ""})

    changed = await client.get("/notes?limit=1", headers=known)
    assert (changed.status_code, changed.json()) == (200, first.json())
    assert "next" in changed.links


async def test_pages_lose_and_repeat_nothing_while_notes_are_written(
    client: httpx.AsyncClient, database: "Connection[Record]"
) -> None:
    titles = [CHANCE.choice("abcdefgh") for _ in range(200)]
    await database.execute(NOTES, titles, [CHANCE.randrange(30) for _ in titles])
    reading = {sort: asyncio.create_task(pages_slowly(client, f"/notes?sort={sort}&limit=5")) for sort in ORDERS}

    gone, changed = await write_a_thousand_times(client, set(range(1, 201)))

    for sort, pages in reading.items():
        expected = set(range(1, 201)) - gone - (changed if "updated" in sort or "title" in sort else set())
        assert sorted(note for note in await pages if note in expected) == sorted(expected), sort


async def pages_slowly(client: httpx.AsyncClient, url: str) -> list[int]:
    """The ids on all pages, with other requests in between."""
    found: list[int] = []
    while url:
        response = await client.get(url)
        found += [note["id"] for note in response.json()]
        url = response.links.get("next", {}).get("url", "")
        await asyncio.sleep(0.02)
    return found


async def write_a_thousand_times(client: httpx.AsyncClient, notes: set[int]) -> tuple[set[int], set[int]]:
    """Deletes, replaces and creates notes; returns the deleted and the changed ones."""
    gone: set[int] = set()
    changed: set[int] = set()

    def text() -> dict[str, str]:
        return {"title": CHANCE.choice("abcdefgh"), "description": ""}

    for _ in range(50):
        [first, *others] = CHANCE.sample(sorted(notes - gone), 10)
        gone.add(first)
        changed |= set(others)
        await asyncio.gather(
            client.delete(f"/notes/{first}"),
            *(client.put(f"/notes/{note}", json=text()) for note in others),
            *(client.post("/notes", json=text()) for _ in range(10)),
        )
    return gone, changed


@pytest.mark.parametrize("key", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "now", "", None])
async def test_cursor_of_an_impossible_time_is_refused(seven: httpx.AsyncClient, key: str | None) -> None:
    made = json.dumps({"order": "created", "id": 1, "key": key}).encode()
    response = await seven.get(f"/notes?sort=created&cursor={base64.urlsafe_b64encode(made).decode()}")

    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/query/cursor")


OF_ID_3 = '{"order":"id","id":3}'


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("text", "sort", "expected"),
    [
        (OF_ID_3, "id", [4, 5, 6, 7]),
        ('{"order":"-created","id":3,"key":"2026-01-03T00:00:00+00:00"}', "-created", [2, 7]),
        (
            '{"order":"updated","backwards":true,"id":3,"key":"2026-01-30T00:00:00.250000+00:00"}',
            "updated",
            [5, 6, 1, 3, 4],
        ),
        ('{"order":"title","id":5,"key":"Éclair"}', "title", []),
    ],
)
async def test_cursor_of_an_earlier_version_leads_on(
    seven: httpx.AsyncClient, text: str, sort: str, expected: list[int]
) -> None:
    assert await ids(seven, f"/notes?sort={sort}&cursor={encoded(text)}") == expected


@pytest.mark.parametrize(
    "cursor",
    [
        *(encoded(OF_ID_3) + junk for junk in ("=", "==", "!", "%0A", "%20", ".", "AAAA")),
        *(f"{junk}{encoded(OF_ID_3)}" for junk in ("!", "%20", "=")),
        encoded(OF_ID_3)[:-1] + "8",  # the bits that base64 does not use
        encoded('{"order":"title","id":3,"key":"~~~???"}').replace("-", "%2B").replace("_", "/"),
        *(encoded(OF_ID_3.replace("3", number)) for number in ('"3"', "3.0", "3e0", "true", "03", "3_0", "+3")),
        *(encoded(text) for text in (f" {OF_ID_3}", f"{OF_ID_3} ", OF_ID_3.replace(",", ", "), f"\ufeff{OF_ID_3}")),
        encoded('{"id":3,"order":"id"}'),
        encoded('{"order":"id","id":2,"id":3}'),
        encoded('{"order":"\\u0069d","id":3}'),
        *(encoded(OF_ID_3.replace("}", f',"backwards":{word}}}')) for word in ('"yes"', "1", '"true"', "false")),
        encoded('{"order":"created","id":3,"key":"2026-01-03 00:00:00+00:00"}'),
        encoded('{"order":"created","id":3,"key":"2026-01-03T00:00:00Z"}'),
        encoded('{"order":"created","id":3,"key":"2026-01-03T01:00:00+01:00"}'),
        encoded('{"order":"created","id":3,"key":"2026-01-03T00:00:00.000000+00:00"}'),
        encoded('{"order":"created","id":3,"key":"1767398400"}'),
        encoded('{"order":"created","id":3,"key":1767398400}'),
    ],
)
async def test_cursor_in_another_spelling_is_refused(seven: httpx.AsyncClient, cursor: str) -> None:
    for sort in ("id", "created", "title"):
        response = await seven.get(f"/notes?sort={sort}&cursor={cursor}")

        assert response.status_code == 422, response.text
        assert [error["pointer"] for error in response.json()["errors"]] == ["/query/cursor"]


async def test_time_in_a_cursor_is_exact(client: httpx.AsyncClient, database: "Connection[Record]") -> None:
    await database.execute(
        "insert into notes (owner_id, title, description, created_date, updated_date, version) "
        "select 1, '', '', $1::timestamptz + n * interval '1 microsecond', now(), 1 from generate_series(0, 9) as n",
        datetime(2026, 1, 1, tzinfo=UTC) - timedelta(microseconds=3),
    )

    assert await pages(client, "/notes?sort=created&limit=1") == [[note] for note in range(1, 11)]
