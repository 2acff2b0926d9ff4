"""The command line of `python -m worker`: no arguments, or a subject such as `doctor`, `dead-letters` or `queues`.

Results are printed to stdout, as a table or with `--json` as one JSON object per line; errors to stderr.
Exit codes: 0 everything is done, 1 something is not, 2 invalid arguments or settings, 3 the schema is behind.
"""

import asyncio
import json
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from pydantic_core import to_json

from shared.broker import BROKER_ERRORS
from shared.clock import CLOCK
from shared.connections import CONNECTION_ERRORS
from shared.database import EXIT_SCHEMA_BEHIND, SchemaBehindError, Session, check_schema, connect
from shared.partitions import read_partitions
from shared.settings import MAX_PARTITIONS
from worker.dead_letters import (
    NotSentError,
    Row,
    discard,
    explain_not_failed,
    explain_not_replayable,
    find_commands,
    find_replayed,
    list_failed,
    send,
    wait_for_outcomes,
)
from worker.doctor import examine
from worker.failures import describe
from worker.newer_commands import fail_newer_commands
from worker.remake import StillConsumedError, remake
from worker.repartition import NotDoneError, repartition
from worker.settings import WorkerSettings

APPLICATION_NAME = "inkwell-worker operator"
EXIT_DONE = 0
EXIT_NOT_DONE = 1
EXIT_WRONG_ARGUMENTS = 2


class Parser(ArgumentParser):
    """A parser without abbreviations: `discard --a` must not mean `--all`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(*arguments, **options | {"allow_abbrev": False})


def read_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse the arguments; `run` is what they ask for, None without any. Exits with 2 if they are invalid."""
    parser = Parser("python -m worker", description="Without a subject: runs a worker until SIGTERM.")
    parser.set_defaults(run=None)
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT")
    doctor = subjects.add_parser("doctor", help="check settings, Postgres and the broker, and suggest remedies")
    doctor.add_argument("--json", action="store_true", help="print one JSON object per line")
    doctor.set_defaults(run=run_doctor)
    add_dead_letters(subjects.add_parser("dead-letters", help="failed commands: list, show, replay or discard them"))
    add_queues(subjects.add_parser("queues", help="repair a command queue"))
    add_repartition(subjects)
    verbs = subjects.add_parser("commands", help="show a command that has an outcome").add_subparsers(required=True)
    add_verb(verbs, "show", show_command, "show the outcome of a command, without what its user wrote").add_argument(
        "id", type=UUID
    )
    parsed = parser.parse_args(arguments)
    if getattr(parsed, "reason", None) and not parsed.all:
        parser.error("--reason goes with --all")
    return parsed


def add_dead_letters(parser: ArgumentParser) -> None:
    """Add the verbs for dead letters."""
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    add_verb(verbs, "list", list_letters, "list all dead letters, without what their users wrote")
    show = add_verb(verbs, "show", show_letter, "show one dead letter and its command, with what its user wrote")
    show.add_argument("id", type=UUID)
    replays = add_verb(verbs, "replay", replay_letters, "apply dead letters again, and print their outcomes")
    replays.add_argument("--force", action="store_true", help="even if the note has changed since the command failed")
    discard_summary = "reject dead letters for good, and delete what their users wrote"
    discards = add_verb(verbs, "discard", discard_letters, discard_summary)
    for verb in (replays, discards):
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("ids", nargs="*", type=UUID, default=[], metavar="ID")
        which.add_argument("--all", action="store_true", help="all dead letters, in the order of their failure")
        verb.add_argument("--reason", help="with --all: only those that failed for this reason, such as `expired`")
        verb.add_argument("--dry-run", action="store_true", help="print what would happen, and change nothing")


def add_queues(parser: ArgumentParser) -> None:
    """Add the verbs for queues, each of which acts on the queue of one partition."""
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    remake_summary = "redeclare a queue with the right arguments; its messages are kept"
    fail_summary = "fail the commands of newer versions at the head of a queue, if no newer worker will be deployed"
    for verb, action, number_of, summary in (
        ("remake", remake, "messages moved; the queue has the right arguments", remake_summary),
        ("fail-newer", fail_newer_commands, "commands failed; they are dead letters now", fail_summary),
    ):
        each = verbs.add_parser(verb, help=summary, description=summary)
        each.add_argument("partition", type=int, help="its number, from 0")
        each.set_defaults(run=operate_on_queue, on_queue=action, number_of=number_of)


def add_repartition(subjects: Any) -> None:  # noqa: ANN401 - argparse's own
    """Add the subject that changes the number of partitions."""
    summary = "change the number of partitions; for some seconds, writes get 503 not_accepted"
    parser = subjects.add_parser("repartition", help=summary, description=summary)
    parser.add_argument("partitions", type=int, choices=range(1, MAX_PARTITIONS + 1), metavar=f"1..{MAX_PARTITIONS}")
    parser.set_defaults(run=change_partitions)


def add_verb(verbs: Any, name: str, action: object, summary: str) -> ArgumentParser:  # noqa: ANN401 - argparse's own
    """Add a verb that prints a table, or JSON with `--json`."""
    parser: ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.set_defaults(run=operate, action=action)
    return parser


async def run_doctor(arguments: Namespace, settings: WorkerSettings) -> int:
    """Check the worker; return the exit code."""
    return await examine(settings, as_json=arguments.json)


async def operate(arguments: Namespace, settings: WorkerSettings) -> int:
    """Run a verb on the rows of commands; return the exit code."""
    try:
        await check_schema(settings.database_url, APPLICATION_NAME)
        session = await connect(settings.database_url, APPLICATION_NAME)
        try:
            code: int = await arguments.action(arguments, settings, session)
        finally:
            session.terminate()
    except SchemaBehindError as error:
        return complain(str(error), EXIT_SCHEMA_BEHIND)
    except NotSentError as error:
        return complain(str(error))
    except BrokenPipeError:  # the reader of the output has closed it
        return EXIT_NOT_DONE
    except CONNECTION_ERRORS as error:
        return complain(f"Postgres does not answer ({describe(error)})")
    return code


async def operate_on_queue(arguments: Namespace, settings: WorkerSettings) -> int:
    """Run a verb on a partition's queue; return the exit code."""
    try:
        partitions = (await read_partitions(settings, APPLICATION_NAME)).partitions
        if arguments.partition not in range(partitions):
            return complain(f"there is no partition {arguments.partition}", EXIT_WRONG_ARGUMENTS)
        settings = settings.model_copy(update={"partitions": partitions})
        number = await arguments.on_queue(settings, arguments.partition)
    except StillConsumedError:
        return complain("the queue has a consumer: stop the workers, then run this again")
    except (*BROKER_ERRORS, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return complain(f"not done; nothing is lost, run this again: {describe(error)}")
    print(f"{number} {arguments.number_of}")
    return EXIT_DONE


async def change_partitions(arguments: Namespace, settings: WorkerSettings) -> int:
    """Change the number of partitions; return the exit code."""
    if task := asyncio.current_task():
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signal_number, task.cancel)
    try:
        former = await repartition(settings, arguments.partitions)
    except NotDoneError as error:
        return complain(str(error))
    except asyncio.CancelledError:
        return complain("interrupted; the number is unchanged, or this has to be run again: see `doctor`")
    except BROKER_ERRORS as error:
        return complain(f"not done; writes may be refused until you run this again: {describe(error)}")
    print(f"{arguments.partitions} partitions, formerly {former}")
    print(
        "services without INKWELL_PARTITIONS use them within seconds; "
        f"restart those that set it with INKWELL_PARTITIONS={arguments.partitions}, or without it"
    )
    return EXIT_DONE


async def list_letters(arguments: Namespace, _: WorkerSettings, session: Session) -> int:
    """Print all dead letters."""
    letters = await list_failed(session)
    show_rows(letters, as_json=arguments.json)
    if not letters and not arguments.json:
        complain("there are no dead letters")
    return EXIT_DONE


async def show_letter(arguments: Namespace, _: WorkerSettings, session: Session) -> int:
    """Print one dead letter with its command."""
    row = (await find_commands(session, [arguments.id])).get(arguments.id)
    if row is None or explain_not_failed(row):
        return complain(f"{arguments.id} is not a dead letter: {explain_not_failed(row)}")
    show_one({**row, "command": json.loads(row["command"])}, as_json=arguments.json)
    return EXIT_DONE


async def show_command(arguments: Namespace, _: WorkerSettings, session: Session) -> int:
    """Print the outcome of one command."""
    row = (await find_commands(session, [arguments.id])).get(arguments.id)
    if row is None:
        return complain(f"{arguments.id} has no outcome: it waits in its queue, was pruned, or never existed")
    show_one({name: value for name, value in row.items() if name != "command"}, as_json=arguments.json)
    return EXIT_DONE


async def replay_letters(arguments: Namespace, settings: WorkerSettings, session: Session) -> int:
    """Replay dead letters and print the outcome of each."""
    rows = await select_commands(arguments, session)
    force = arguments.force
    replayed = await find_replayed(session, rows.values())
    refused = {each: why for each, row in rows.items() if (why := explain_not_replayable(row, replayed, force=force))}
    letters = [row for each, row in rows.items() if row and each not in refused]
    if arguments.dry_run:
        results = [build_result(row["id"], "would be sent again") for row in letters]
    else:
        results = await replay(settings, session, letters, force=force)
    results += [build_result(each, "refused", why) for each, why in refused.items()]
    show_rows(results, as_json=arguments.json)
    return exit_code(results, "applied", "rejected", "would be sent again")


async def replay(settings: WorkerSettings, session: Session, rows: Sequence[Row], *, force: bool) -> list[Row]:
    """Replay the dead letters; return the result of each."""
    if not rows:
        return []
    [(at,)] = await CLOCK.fetch(session)
    not_sent = await send(settings, rows, at, force=force)
    sent = [row["id"] for row in rows if row["id"] not in not_sent]
    complain(f"{len(sent)} sent; waiting for their outcomes")
    decided = {row["id"]: row async for row in wait_for_outcomes(session, sent, at)}
    undecided = {"status": "not decided yet", "reason": "ask again with `commands show`"}
    outcomes = [(each, decided.get(each, undecided)) for each in sent]
    results = [build_result(each, outcome["status"], outcome["reason"]) for each, outcome in outcomes]
    return results + [build_result(each, "not sent", why) for each, why in not_sent.items()]


async def discard_letters(arguments: Namespace, _: WorkerSettings, session: Session) -> int:
    """Discard dead letters and print the result of each."""
    rows = await select_commands(arguments, session)
    refused = {each: why for each, row in rows.items() if (why := explain_not_failed(row))}
    letters = [each for each in rows if each not in refused]
    if arguments.dry_run:
        results = [build_result(each, "would be discarded") for each in letters]
    else:
        discarded = await discard(session, letters)
        results = [build_result(each, "discarded" if each in discarded else "not failed any more") for each in letters]
    results += [build_result(each, "refused", why) for each, why in refused.items()]
    show_rows(results, as_json=arguments.json)
    return exit_code(results, "discarded", "would be discarded")


async def select_commands(arguments: Namespace, session: Session) -> dict[UUID, Row | None]:
    """Return the commands that the arguments select, in the order in which they failed; None for one without a row."""
    letters = await list_failed(session)
    positions = {row["id"]: position for position, row in enumerate(letters)}
    ids = [row["id"] for row in letters if arguments.reason in (None, row["reason"])]
    if not arguments.all:
        ids = sorted(arguments.ids, key=lambda each: positions.get(each, len(positions)))
    if not ids:  # a misspelled reason must not look like success
        complain("no dead letter is selected")
    rows = await find_commands(session, ids)
    return {each: rows.get(each) for each in ids}


def build_result(command_id: UUID, outcome: str, reason: str | None = None) -> Row:
    """Return the row to print for one of the commands."""
    return {"id": command_id, "result": outcome, "reason": reason}


def exit_code(results: Iterable[Row], *good: str) -> int:
    """Return EXIT_DONE if every result is one of the good ones, otherwise EXIT_NOT_DONE."""
    return EXIT_DONE if all(each["result"] in good for each in results) else EXIT_NOT_DONE


def show_rows(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the rows as a table, or as one JSON object per line."""
    if as_json:
        for row in rows:
            print(to_json(row).decode())
    elif rows:
        lines = [
            [name.replace("_", " ") for name in rows[0]],
            *(list(map(format_value, row.values())) for row in rows),
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(map(str.ljust, line, widths)).rstrip())


def show_one(row: Row, *, as_json: bool) -> None:
    """Print one row as a JSON object, or each of its columns on a line."""
    if as_json:
        return show_rows([row], as_json=True)
    for name, value in row.items():
        print(f"{name.replace('_', ' ')}: {format_value(value)}")
    return None


def format_value(value: object) -> str:
    """Return the value as readable text."""
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, dict):
        return json.dumps(value, indent=2)
    return "-" if value is None else str(value)


def complain(sentence: str, code: int = EXIT_NOT_DONE) -> int:
    """Print the sentence to stderr; return the exit code."""
    print(sentence, file=sys.stderr)
    return code
