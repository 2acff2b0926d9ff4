import asyncpg

from gateway.queries import LIST_NOTES

OWNERS = "insert into users (name) select 'Ada' from generate_series(1, 101)"
NOTES = """
insert into notes (owner_id, title, description, created_date, updated_date, version)
select {owner}, 'Ink', '', now(), now(), 1 from generate_series(1, {count}) as number
"""


async def test_a_list_does_not_walk_past_what_others_wrote_earlier(
    database: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    await database.execute(OWNERS)
    await database.execute(NOTES.format(owner="1 + number % 100", count=5000))
    await database.execute(NOTES.format(owner=101, count=2500))
    await database.execute("analyze")
    values = {"owner": 101, "credentials_version": 1, "skip": 0, "limit": 100}
    explained = f"explain (analyze, costs off) {LIST_NOTES.sql}"
    plan = "\n".join(row[0] for row in await database.fetch(explained, *map(values.get, LIST_NOTES.parameters)))
    assert "notes_owner_id_id_idx" in plan
    assert "notes_pkey" not in plan
