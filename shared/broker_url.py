"""The URL of a broker, which may have several nodes; parsing rejects any unsupported part by name."""

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Self
from urllib.parse import parse_qsl, quote

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from yarl import URL

from shared.addresses import Host, decode, pair_hosts, split_authority, split_url

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
DEFAULT_USER = "guest"
"""The AMQP library's default user."""
HINTS_VHOST = "hints_vhost"
"""The query parameter that names a virtual host for hints of changes; the AMQP library ignores it."""
PARAMETERS = frozenset(
    {"auth", "cadata", "cafile", "capath", "certfile", "heartbeat", "keyfile", "name", "no_verify_ssl", "timeout"}
) | {HINTS_VHOST}
"""The query parameters that the AMQP library supports, and Inkwell's own."""


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """The nodes of a broker and how to connect to them; `str` returns the original URL, including its password."""

    text: str = field(repr=False)
    scheme: str
    user: str
    vhost: str
    hosts: tuple[Host, ...]
    _userinfo: str = field(repr=False)
    _rest: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the parsed URL; raises ValueError for an invalid part, without secrets in its message."""
        scheme, authority, vhost, query = split_url(text, *DEFAULT_PORTS)
        if "#" in text:
            raise ValueError("has a # that is not percent-encoded")
        user, password, hosts, ports = split_authority(authority)
        decode(password)
        _check_parameters(query)
        default_port = DEFAULT_PORTS[scheme]
        named = tuple(pair_hosts(hosts, [port or str(default_port) for port in ports], default_port))
        userinfo = authority[: authority.rfind("@") + 1]
        rest = text[len(f"{scheme}://{authority}") :]
        return cls(text, scheme, decode(user) or DEFAULT_USER, decode(vhost) or "/", named, userinfo, rest)

    def __str__(self) -> str:
        return self.text

    def url_of(self, host: str, port: int) -> URL:
        """Return the URL of one node for the AMQP library."""
        return URL(f"{self.scheme}://{self._userinfo}{f'[{host}]' if ':' in host else host}:{port}{self._rest}")

    def for_hints(self) -> Self:
        """Return the URL of the virtual host for hints of changes: this one, unless a parameter names another."""
        scheme, authority, _, query = split_url(self.text, self.scheme)
        vhost = dict(parse_qsl(query)).get(HINTS_VHOST)
        return self.parse(f"{scheme}://{authority}/{quote(vhost, safe='')}?{query}") if vhost else self

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401 - pydantic's
        """Have pydantic parse text, and accept parsed URLs."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(str(value))
        )


def _check_parameters(query: str) -> None:
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name in PARAMETERS:
            continue
        if not re.fullmatch("[a-z_]{1,63}", name):  # may be part of a password
            raise ValueError("has an unknown parameter")
        nearest = get_close_matches(name, sorted(PARAMETERS), n=1)
        raise ValueError(f"there is no parameter {name}{f'; did you mean {nearest[0]}?' if nearest else ''}")
