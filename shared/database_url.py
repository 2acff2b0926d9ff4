"""The URL of a database in libpq's words: each parameter has its effect, or is refused by its name at start.

asyncpg passes parameters that it does not know to the server as settings, and the server then refuses every connection.
"""

import os
import random
import re
import ssl
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from shared.addresses import Host, decode, pair_hosts, parse_address, split_authority

DEFAULT_PORT = 5432
SYSTEM = "system"
"""A `sslrootcert` that is no file: the authorities that the machine trusts."""
SYSTEM_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
VERIFYING = ("verify-ca", "verify-full")
WITHOUT_EFFECT = ("keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "tcp_user_timeout")
"""Postgres sends keepalives on every connection of Inkwell's, and nothing waits for it without a deadline."""
TLS = (
    "sslmode",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
)
"""What asyncpg knows of it, and takes from a URL alone."""
NUMBERS = ("connect_timeout", *WITHOUT_EFFECT)
TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
WORDS: Mapping[str, tuple[str, ...]] = {
    "sslmode": ("disable", "allow", "prefer", "require", *VERIFYING),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_max_protocol_version": TLS_VERSIONS,
    "ssl_min_protocol_version": TLS_VERSIONS,
    "load_balance_hosts": ("disable", "random"),
    "target_session_attrs": ("any", "read-write", "primary"),
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("UTF8", "utf8", "UTF-8", "utf-8"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "max_protocol_version": ("3.0", "3.2", "latest"),
    "min_protocol_version": ("3.0",),
    "replication": ("0", "false", "no", "off"),
    "sslcertmode": ("allow",),
    "sslcompression": ("0", "1"),  # libpq compresses nothing either
    "sslsni": ("1",),
}
"""The values that can be had; libpq has more of some."""
REASONS: Mapping[str, str] = {
    "channel_binding": "the driver cannot bind channels; sslmode=verify-full keeps others from listening in",
    "hostaddr": "give the address as the host",
    "target_session_attrs": "Inkwell reads and writes at the primary",
}
TEXTS = ("application_name", "dbname", "fallback_application_name", "host", "options", "passfile", "password", "port")
KNOWN = frozenset({*TEXTS, *NUMBERS, *WORDS, *TLS, "user"})
UNSUPPORTED = frozenset(
    {
        *("gsslib", "krbsrvname"),
        *("hostaddr", "service", "servicefile"),
        *("oauth_client_id", "oauth_client_secret", "oauth_issuer", "oauth_scope"),
        *("require_auth", "requirepeer", "scram_client_key", "scram_server_key"),
        *("sslcrldir", "sslkeylogfile"),
    }
)
"""What libpq knows besides."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where Postgres is and how to connect; `str` is the URL as it was given, with its password."""

    text: str = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)
    """All that the URL says, by the names that libpq has for it."""
    hosts: tuple[Host, ...]
    """Names, addresses or folders of sockets, with their ports, in the order in which they are given."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The URL; raises ValueError where a part of it is wrong or cannot be had, in words without secrets."""
        parameters = dict(_parameters_of(text))
        for name, value in parameters.items():
            _check(name, value)
        if parameters.get("sslrootcert") == SYSTEM:
            parameters["sslrootcert"] = _system_certificates(parameters.setdefault("sslmode", "verify-full"))
        _check_files(parameters)
        return cls(text, parameters, tuple(_hosts_of(parameters)))

    def __str__(self) -> str:
        return self.text

    @property
    def without_effect(self) -> list[str]:
        """The parameters that change nothing here."""
        return sorted(self.parameters.keys() & {*WITHOUT_EFFECT})

    @property
    def connect_timeout_seconds(self) -> float | None:
        """How long to wait for each host, if the URL says so."""
        return float(self.parameters["connect_timeout"]) if "connect_timeout" in self.parameters else None

    def hosts_to_try(self) -> list[Host]:
        """Return the hosts in the order for one connection: random, unless the URL says otherwise.

        With `target_session_attrs=any` the first host may be meant to be preferred.
        """
        order = "disable" if self.parameters.get("target_session_attrs") == "any" else "random"
        is_random = self.parameters.get("load_balance_hosts", order) == "random"
        return random.sample(self.hosts, len(self.hosts)) if is_random else list(self.hosts)

    def connect_arguments(self, application_name: str) -> dict[str, Any]:
        """Arguments of asyncpg's `connect`, other than the host and timeouts; a name in the URL goes before this one.

        The primary is wanted unless the URL says otherwise: a standby shows what was, and takes no writes.
        """
        given = self.parameters
        name = given.get("application_name", application_name)
        options = {"options": given["options"]} if "options" in given else {}
        return {
            "dsn": f"postgresql://?{urlencode({name: given[name] for name in TLS if name in given})}",
            "user": given.get("user"),
            "password": given.get("password"),
            "passfile": given.get("passfile"),
            "database": given.get("dbname"),
            "target_session_attrs": given.get("target_session_attrs", "primary"),
            "server_settings": options | {"application_name": name},
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401 - pydantic's
        """Has pydantic parse text, and take what is parsed already."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(str(value))
        )


def _parameters_of(text: str) -> Iterator[tuple[str, str]]:
    """What each part of the URL says, without what is empty; of a name that comes twice the last one counts."""
    scheme, has_scheme, rest = text.partition("://")
    if not has_scheme or scheme not in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql://")
    before, _, query = rest.partition("?")
    authority, _, database = before.partition("/")
    if "@" not in authority and "@" in database + query:
        raise ValueError("has a user or a password in which a / or a ? is not percent-encoded")
    user, password, addresses = split_authority(authority)
    hosts, ports = zip(*map(parse_address, addresses.split(",")), strict=True)
    parts = [("user", user), ("password", password), ("dbname", database)]
    parts += [(name, ",".join(each)) for name, each in (("host", hosts), ("port", ports)) if any(each)]
    parts += [(name, value) for name, _, value in (each.partition("=") for each in query.split("&") if each)]
    if ("ssl", "true") in parts:  # as JDBC has it, and libpq knows it
        parts[parts.index(("ssl", "true"))] = ("sslmode", "require")
    yield from ((decode(name), decode(value)) for name, value in parts if value)


def _hosts_of(parameters: Mapping[str, str]) -> Iterator[Host]:
    hosts, ports = parameters.get("host", "").split(","), parameters.get("port", "").split(",")
    return pair_hosts(hosts, ports, DEFAULT_PORT)


def _check(name: str, value: str) -> None:
    """Raises ValueError where a parameter cannot be had with this value."""
    reason = f": {REASONS[name]}" if name in REASONS else ""
    if name in UNSUPPORTED:
        raise ValueError(f"{name} is not supported{reason}")
    if name not in KNOWN:
        raise ValueError(_unknown(name))
    if name in WORDS and value not in WORDS[name]:
        raise ValueError(f"{name} must be {' or '.join(WORDS[name])}{reason}")
    if name in NUMBERS and not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError(f"{name} must be a whole number")
    if name == "connect_timeout" and not int(value):
        raise ValueError("connect_timeout must be 1 or more: nothing waits without a deadline")


def _unknown(name: str) -> str:
    if not re.fullmatch("[A-Za-z_.]{1,63}", name):  # part of a password, perhaps
        return "has a parameter that there is not"
    nearest = get_close_matches(name, sorted(KNOWN), n=1)
    advice = f"did you mean {nearest[0]}?" if nearest else f"a setting of the server's is options=-c%20{name}%3D…"
    return f"there is no parameter {name}; {advice}"


def _system_certificates(sslmode: str) -> str:
    """The file with the authorities that this machine trusts."""
    if sslmode != "verify-full":
        raise ValueError("sslrootcert=system needs sslmode=verify-full: they sign for everybody")
    files = (ssl.get_default_verify_paths().cafile, *SYSTEM_CERTIFICATES)
    if not (found := next((file for file in files if file and Path(file).is_file()), None)):
        raise ValueError("sslrootcert=system: this machine has no file of certificates")
    return found


def _check_files(parameters: Mapping[str, str]) -> None:
    """Raises ValueError where a file is missing or unusable; asyncpg reads them with each connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    secret = parameters.get("sslpassword", "")
    checks: dict[str, Callable[[str], object]] = {
        "sslrootcert": context.load_verify_locations,
        "sslcrl": context.load_verify_locations,
        "sslcert": lambda file: context.load_cert_chain(file, parameters.get("sslkey"), lambda: secret),
        "passfile": _check_password_file,
    }
    for name, check in checks.items():
        try:
            check(parameters[name]) if name in parameters else None
        except ssl.SSLError:
            raise ValueError(f"{name}: is no file in the form of PEM, or sslpassword is not its password") from None
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from None
    is_verifying = parameters.get("sslmode") in VERIFYING
    if is_verifying and not ("sslrootcert" in parameters or _has_own_certificates()):
        raise ValueError("sslmode=verify-ca and verify-full need sslrootcert, a file or `system`")


def _has_own_certificates() -> bool:
    """Whether libpq's own places, which asyncpg knows too, tell whom to trust."""
    return "PGSSLROOTCERT" in os.environ or (Path.home() / ".postgresql/root.crt").is_file()


def _check_password_file(file: str) -> None:
    if stat.S_IMODE(Path(file).stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError("passfile: others may read it, and so nobody does; make its mode 0600")
