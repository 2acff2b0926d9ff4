"""The program `inkwell`."""

import argparse
import getpass
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from uuid import uuid4

import httpx

from inkwell_client import credentials
from inkwell_client.api import RetryPolicy, check, connect
from inkwell_client.credentials import Credentials
from inkwell_client.errors import ClientError, UnavailableError
from inkwell_client.exporting import export, export_to_file
from inkwell_client.importing import Result, import_file
from inkwell_client.watching import iter_changes

STDIO = "-"
TOKEN_DAYS = 90
EXIT_REJECTED = 3
LIVE = '{"status":"live"}'
"""What a gateway answers to GET /health/live."""
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 for an error, 2 for wrong arguments, 3 if lines were not imported."""
    options = read_arguments(arguments)
    try:
        return run(options)
    except (ClientError, UnavailableError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        sys.stderr.write(f"inkwell: {str(error) or type(error).__name__}\n")
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "inkwell", description="Exports, imports and watches notes in an Inkwell deployment."
    )
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    login = commands.add_parser("login", help="sign in, and save a token for the other commands")
    login.add_argument("url", help="the URL of the deployment, such as https://notes.example")
    login.add_argument("--token", action="store_true", help="ask for a personal token instead of name and password")
    exporting = commands.add_parser("export", help="write all notes to a file, one JSON object per line")
    exporting.add_argument("file", help="a new file, or - for standard output")
    importing = commands.add_parser("import", help="create a note for each line of a file")
    importing.add_argument("file", help="a file written by an export, or - for standard input")
    importing.add_argument("--again", action="store_true", help="import a file once more that was imported before")
    importing.add_argument("--rejected", metavar="FILE", type=Path, help="where to copy rejected lines")
    commands.add_parser("watch", help="print changes as they happen, one JSON object per line")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code; raises ClientError, or the errors of files and connections."""
    if options.command == "login":
        return log_in(options.url.rstrip("/"), asks_for_token=options.token)
    with connect(credentials.load()) as client:
        match options.command:
            case "export":
                return run_export(client, options.file)
            case "import":
                return run_import(client, options)
            case _:
                for change in iter_changes(client, RetryPolicy()):
                    print(change, flush=True)
                return 0


def log_in(url: str, *, asks_for_token: bool) -> int:
    """Save an existing token, or a new one, requested with name and password."""
    token = getpass.getpass("Personal token: ") if asks_for_token else request_token(url)
    path = credentials.save(Credentials(url, token))
    sys.stderr.write(f"signed in to {url}; saved in {path}\n")
    return 0


def request_token(url: str) -> str | None:
    """Return a new personal token, or None if the deployment has no users; raises ClientError."""
    with connect(Credentials(url, None)) as client:
        name = input("Name: ")
        response = client.post("/auth/token", data={"username": name, "password": getpass.getpass("Password: ")})
        if response.status_code == HTTPStatus.NOT_FOUND:
            check_is_deployment(client)  # a wrong URL is a 404, too
            return None
        access_token = read_member(response, "access_token")
        headers = {
            "Authorization": f"Bearer {access_token}",
            "Idempotency-Key": str(uuid4()),
            "Prefer": "wait=30",
        }
        body = {
            "name": f"inkwell on {socket.gethostname()}"[:50],
            "scopes": ["notes:read", "notes:write"],
            "expires_in_days": TOKEN_DAYS,
        }
        created = client.post("/auth/tokens", json=body, headers=headers)
        check(created)
        if created.status_code != HTTPStatus.CREATED:
            raise ClientError("signed in, but creating a token takes too long; try again later")
        return read_member(created, "token")


def check_is_deployment(client: httpx.Client) -> None:
    """Raise ClientError unless the client's URL is that of a deployment."""
    response = client.get("/health/live")
    check(response)
    if response.text != LIVE:
        raise ClientError(f"{client.base_url} is not the URL of a deployment of Inkwell")


def read_member(response: httpx.Response, name: str) -> str:
    """Return a member of a response's JSON; raises as `check`, and ClientError if another server has answered."""
    check(response)
    try:
        return str(response.json()[name])
    except (ValueError, TypeError, KeyError):
        raise ClientError(f"{response.request.url} is not answered as Inkwell would") from None


def run_export(client: httpx.Client, file: str) -> int:
    """Export to a file or to standard output."""
    if file == STDIO:
        count = export(client, sys.stdout.buffer, 0, RetryPolicy())
        sys.stdout.buffer.flush()
    else:
        count = export_to_file(client, Path(file), RetryPolicy())
    sys.stderr.write(f"{count} notes\n")
    return 0


def run_import(client: httpx.Client, options: argparse.Namespace) -> int:
    """Import a file, or standard input, which is copied first, since keys depend on its whole content."""
    if options.file == STDIO:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.seek(0)
            result = import_file(client, copy, RetryPolicy(), again=options.again)
    else:
        with Path(options.file).open("rb") as file:
            result = import_file(client, file, RetryPolicy(), again=options.again)
    return report(result, options.rejected)


def report(result: Result, rejected: Path | None) -> int:
    """Print the result, and return the exit code."""
    sys.stderr.write(f"{result.imported} notes imported, {len(result.rejected)} lines rejected\n")
    if not result.rejected:
        return 0
    if rejected:
        with rejected.open("wb") as file:
            file.writelines(line.rstrip(b"\n") + b"\n" for line in result.rejected)
    sys.stderr.write("correct them in a file of their own and import that; the others were imported\n")
    return EXIT_REJECTED


if __name__ == "__main__":
    sys.exit(main())
