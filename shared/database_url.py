"""The URL of a database with libpq's parameters: each has its effect, or is rejected by name at start.

asyncpg passes unknown parameters to the server as settings, and the server then refuses every connection.
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

from shared.addresses import Host, decode, pair_hosts, split_authority, split_url

DEFAULT_PORT = 5432
SYSTEM = "system"
"""The value of `sslrootcert` for the certificate authorities that the machine trusts."""
SYSTEM_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
VERIFYING = ("verify-ca", "verify-full")
WITHOUT_EFFECT = ("keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "tcp_user_timeout")
"""Accepted but ignored: the server sends keepalives, and every wait for it has a deadline."""
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
"""The TLS parameters that asyncpg supports, only in a URL."""
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
    "sslcompression": ("0", "1"),  # current versions of libpq ignore it, too
    "sslsni": ("1",),
}
"""The supported values; for some parameters libpq has more."""
REASONS: Mapping[str, str] = {
    "channel_binding": "the driver does not support it; sslmode=verify-full prevents eavesdropping",
    "hostaddr": "use the address as the host",
    "target_session_attrs": "Inkwell needs the primary for reads, too",
}
TEXTS = ("application_name", "dbname", "fallback_application_name", "host", "options", "passfile", "password", "port")
KNOWN = frozenset({*TEXTS, *NUMBERS, *WORDS, *TLS, "user"})
UNSUPPORTED = frozenset(
    {
        "gsslib",
        "krbsrvname",
        "hostaddr",
        "service",
        "servicefile",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_issuer",
        "oauth_scope",
        "require_auth",
        "requirepeer",
        "scram_client_key",
        "scram_server_key",
        "sslcrldir",
        "sslkeylogfile",
    }
)
"""The other parameters of libpq."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """The hosts of a database and how to connect to them; `str` returns the original URL, including its password."""

    text: str = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)
    """All parts of the URL, by libpq's parameter names."""
    hosts: tuple[Host, ...]
    """Names, addresses or directories of sockets, with their ports, in the URL's order."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the parsed URL; raises ValueError, without secrets, for an invalid or unsupported part."""
        parameters = dict(_parse_parameters(text))
        for name, value in parameters.items():
            _check(name, value)
        if parameters.get("sslrootcert") == SYSTEM:
            parameters["sslrootcert"] = _locate_system_certificates(parameters.setdefault("sslmode", "verify-full"))
        _check_files(parameters)
        return cls(text, parameters, tuple(_parse_hosts(parameters)))

    def __str__(self) -> str:
        return self.text

    @property
    def without_effect(self) -> list[str]:
        """The URL's parameters that are ignored."""
        return sorted(self.parameters.keys() & {*WITHOUT_EFFECT})

    @property
    def connect_timeout_seconds(self) -> float | None:
        """The `connect_timeout` for each host, or None."""
        return float(self.parameters["connect_timeout"]) if "connect_timeout" in self.parameters else None

    def hosts_to_try(self) -> list[Host]:
        """Return the hosts in the order in which to try them: random, unless the URL sets `load_balance_hosts`.

        With `target_session_attrs=any` the default is the URL's order, since its first host may be the preferred one.
        """
        order = "disable" if self.parameters.get("target_session_attrs") == "any" else "random"
        is_random = self.parameters.get("load_balance_hosts", order) == "random"
        return random.sample(self.hosts, len(self.hosts)) if is_random else list(self.hosts)

    def connect_arguments(self, application_name: str) -> dict[str, Any]:
        """Return the arguments of asyncpg's `connect` except host and timeouts.

        The URL's `application_name` takes precedence. The default target is the primary: a standby returns stale rows
        and accepts no writes.
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
        """Have pydantic parse text, and accept parsed URLs."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(str(value))
        )


def _parse_parameters(text: str) -> Iterator[tuple[str, str]]:
    """Yield the URL's non-empty parts as parameters; of a repeated one the last takes precedence."""
    _, authority, database, query = split_url(text, "postgresql", "postgres")
    user, password, hosts, ports = split_authority(authority)
    parts = [("user", user), ("password", password), ("dbname", database)]
    parts += [(name, ",".join(each)) for name, each in (("host", hosts), ("port", ports)) if any(each)]
    parts += [(name, value) for name, _, value in (each.partition("=") for each in query.split("&") if each)]
    if ("ssl", "true") in parts:  # JDBC's spelling, which libpq accepts too
        parts[parts.index(("ssl", "true"))] = ("sslmode", "require")
    yield from ((decode(name), decode(value)) for name, value in parts if value)


def _parse_hosts(parameters: Mapping[str, str]) -> Iterator[Host]:
    hosts = parameters.get("host", "").split(",")
    ports = parameters.get("port", "").split(",")
    return pair_hosts(hosts, ports, DEFAULT_PORT)


def _check(name: str, value: str) -> None:
    """Raise ValueError if the parameter or its value is not supported."""
    reason = f": {REASONS[name]}" if name in REASONS else ""
    if name in UNSUPPORTED:
        raise ValueError(f"{name} is not supported{reason}")
    if name not in KNOWN:
        raise ValueError(_describe_unknown(name))
    if name in WORDS and value not in WORDS[name]:
        raise ValueError(f"{name} must be {' or '.join(WORDS[name])}{reason}")
    if name in NUMBERS and not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError(f"{name} must be a whole number")
    if name == "connect_timeout" and not int(value):
        raise ValueError("connect_timeout must be 1 or more: waiting without a deadline is not supported")


def _describe_unknown(name: str) -> str:
    if not re.fullmatch("[A-Za-z_.]{1,63}", name):  # may be part of a password
        return "has an unknown parameter"
    nearest = get_close_matches(name, sorted(KNOWN), n=1)
    advice = f"did you mean {nearest[0]}?" if nearest else f"set a server setting with options=-c%20{name}%3D…"
    return f"there is no parameter {name}; {advice}"


def _locate_system_certificates(sslmode: str) -> str:
    """Return the file of certificate authorities that this machine trusts."""
    if sslmode != "verify-full":
        raise ValueError("sslrootcert=system needs sslmode=verify-full: its authorities sign certificates for any host")
    files = (ssl.get_default_verify_paths().cafile, *SYSTEM_CERTIFICATES)
    if not (found := next((file for file in files if file and Path(file).is_file()), None)):
        raise ValueError("sslrootcert=system: no file of trusted certificate authorities was found on this machine")
    return found


def _check_files(parameters: Mapping[str, str]) -> None:
    """Raise ValueError if a file is missing or unusable; asyncpg would report it only on connecting."""
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
            raise ValueError(f"{name}: is not a valid PEM file, or sslpassword is incorrect") from None
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from None
    is_verifying = parameters.get("sslmode") in VERIFYING
    if is_verifying and not ("sslrootcert" in parameters or _has_own_certificates()):
        raise ValueError("sslmode=verify-ca and verify-full need sslrootcert: a file, or `system`")


def _has_own_certificates() -> bool:
    """Whether certificate authorities are configured in libpq's default places, which asyncpg reads too."""
    return "PGSSLROOTCERT" in os.environ or (Path.home() / ".postgresql/root.crt").is_file()


def _check_password_file(file: str) -> None:
    if stat.S_IMODE(Path(file).stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError("passfile: others may read it, so the driver would ignore it; change its mode to 0600")
