"""Whatever can be decoded can be applied: Postgres refuses nothing of it."""

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from shared.connections import Connections
from shared.contracts import NewerVersionError, Unreadable, decode_batch
from shared.database import Session
from tests.fuzz.messages import EVENTS, IS_LONG, SEED, dump, events_of
from worker.apply import apply_batch

EXAMPLES = 5000 if IS_LONG else 100
BEGIN = """
truncate notes, tombstones, commands, note_versions, personal_tokens restart identity;
delete from users where id <> 1;
update users set deleted_date = null, credentials_version = 1 where id = 1
"""


@seed(SEED)
@settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=st.lists(events_of(EVENTS), min_size=1, max_size=8))
async def test_what_was_decoded_is_applied(connections: Connections, database: Session, events: list[object]) -> None:
    await database.execute(BEGIN)
    body = dump(events).encode(errors="surrogatepass")
    try:
        received = decode_batch(body)
    except NewerVersionError:
        received = decode_batch(body, fail_newer=True)
    commands = [each for each in received if not isinstance(each, Unreadable)]

    outcomes = await apply_batch(connections, commands)

    assert [outcome.id for outcome in outcomes] == [command.id for command in commands]
