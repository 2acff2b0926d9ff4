"""The gateway's own settings."""

import re
from ipaddress import ip_address
from typing import Annotated, Literal, Self

import limits
from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyNetwork, SecretStr, model_validator
from pydantic_settings import NoDecode

from shared.settings import ServiceSettings

MIN_KEY_CHARACTERS = 32
ESCAPED_CHARACTER_BYTES = 12
NAMES_BYTES = 100
RESERVED_SEGMENTS = frozenset(("auth", "commands", "docs", "health", "notes", "openapi.json", "users", ".", ".."))
"""First segments that a prefix must not have: it would be ambiguous whether a path has the prefix."""
BODY_LIMIT_MAX_BYTES = 1024 * 1024
TEXT_MAX_LENGTH = (BODY_LIMIT_MAX_BYTES - NAMES_BYTES) // ESCAPED_CHARACTER_BYTES
"""The longest title and description, together, that fit into the largest body even if every character is escaped."""
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?")
"""An origin as browsers serialize it (RFC 6454 §6.2): without a path, in lower case and ASCII."""


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_key_length(key: SecretStr) -> SecretStr:
    if len(key) < MIN_KEY_CHARACTERS:
        raise ValueError(f"must have at least {MIN_KEY_CHARACTERS} characters, not {len(key)}")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_rate_limit(text: str) -> str:
    try:
        limits.parse(text)
    except ValueError:
        raise ValueError("must be a number per time, such as 10/minute or 100/hour") from None
    return text


def _check_origin(origin: str) -> str:
    if not ORIGIN.fullmatch(origin):
        raise ValueError("must be origins such as https://notes.example:8443, without a path; * is not allowed")
    return origin


def _check_prefix(prefix: str | None) -> str | None:
    segments = (prefix or "").split("/")[1:]
    if (segments[:1] and segments[0] in RESERVED_SEGMENTS) or {".", ".."} & set(segments):
        reserved = ", ".join(sorted(RESERVED_SEGMENTS))
        raise ValueError(f"must not begin with one of {reserved}, nor contain a dot segment")
    return prefix


COMMA_SEPARATED = (NoDecode, BeforeValidator(_split_commas))
Prefix = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$"), AfterValidator(_check_prefix)]
RateLimit = Annotated[str, AfterValidator(_check_rate_limit)]
Key = Annotated[SecretStr, AfterValidator(_check_key_length)]
Origin = Annotated[str, AfterValidator(_check_origin)]


class GatewaySettings(ServiceSettings):
    """The settings of a gateway."""

    signing_keys: Annotated[tuple[Key, ...], *COMMA_SEPARATED, Field(min_length=1)]
    """Comma-separated secrets of 32 characters or more: the first signs command URLs and access tokens, all verify"""
    fingerprint_key: Key
    """Secret of 32 characters or more for fingerprints and personal tokens; the same in all gateways, and kept"""
    auth: Literal["password", "none"] = "password"
    """`password`: users sign in; `none`: every request acts as the same owner"""
    trust_network: bool = False
    """With `INKWELL_AUTH=none`: confirms that something else keeps strangers from the gateway's address"""
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], *COMMA_SEPARATED] = ()
    """Comma-separated addresses or networks of the proxies whose `X-Forwarded-For` is trusted"""
    token_issuer: Annotated[str, Field(min_length=1)] = "inkwell"  # noqa: S105 - no secret
    """Issuer and audience of access tokens; give each deployment its own"""
    token_lifetime_seconds: Annotated[int, Field(ge=60, le=86_400)] = 3600
    """How long an access token is valid"""
    login_limit: RateLimit = "10/minute"
    """Wrong passwords for an account from an address, in each gateway process"""
    login_address_limit: RateLimit = "100/minute"
    """Logins from an address, successful or not, in each gateway process"""
    registration_limit: RateLimit = "20/minute"
    """Registrations and new names from an address, in each gateway process"""
    host: str = "127.0.0.1"
    """Address or host name to listen on; `::` means all addresses, of IPv4 and IPv6"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on"""
    root_path: Prefix | None = None
    """Path prefix at a proxy, such as `/inkwell`; the proxy may remove it or not"""
    keep_alive_seconds: Annotated[int, Field(ge=1, le=86_400)] = 75
    """How long an idle connection is kept open; set it longer than the proxy's"""
    send_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """How long a client may read nothing of a response before its connection is closed"""
    cors_origins: Annotated[tuple[Origin, ...], *COMMA_SEPARATED] = ()
    """Comma-separated origins (`https://app.example`) whose pages may use the API from a browser; `*` is refused"""
    docs: bool = True
    """Whether `/docs` and `/openapi.json` are served"""
    wait_seconds: Annotated[float, Field(ge=0, le=30)] = 5.0
    """How long a write waits for its outcome before it is answered 202"""
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """How long the broker may take to confirm a write"""
    read_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """How long Postgres may take to answer a read"""
    read_connections: Annotated[int, Field(ge=2, le=100)] = 4
    """Connections to Postgres; lists use all but one of them, and a single user's lists one less"""
    kept_pages_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Bytes of lists kept in memory, to be sent again while the user's notes have not changed; 0 keeps none"""
    title_max_length: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Characters in a title"""
    description_max_length: Annotated[int, Field(ge=1)] = 200
    """Characters in a description; together with the title's at most 87373"""
    body_limit_bytes: Annotated[int, Field(ge=1024, le=BODY_LIMIT_MAX_BYTES)] = 64 * 1024
    """Bytes in a request body; a note within the two lengths must fit, at 12 bytes a character"""
    search_matches: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Matches of a search that are ranked: the newest ones"""
    search_timeout_seconds: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    """How long Postgres may work on each of a search's three steps: words, text, and similar notes; at most a quarter
    of the read timeout has an effect"""
    require_preconditions: bool = False
    """Whether a change of a note without `If-Match` is refused with 428"""
    waiters_limit: Annotated[int, Field(ge=0)] = 10_000
    """Writes that wait for their outcome; any more are answered 202 at once"""
    streams_per_user: Annotated[int, Field(ge=1)] = 10
    """Streams of changes that a user may have open at a gateway; any more are refused with 429"""
    streams: Annotated[int, Field(ge=1)] = 2000
    """Streams of changes of all users at a gateway; any more are refused with 503"""
    backlog_limit_bytes: Annotated[int, Field(ge=4096)] = 64 * 1024 * 1024
    """Bytes of commands that wait for the broker; any more writes are refused with 503"""
    drain_delay_seconds: Annotated[float, Field(ge=0, le=60)] = 1.0
    """On SIGTERM: time between being not ready and refusing connections"""
    drain_timeout_seconds: Annotated[float, Field(ge=1, le=600)] = 20.0
    """On SIGTERM: time to answer the requests in progress"""

    @property
    def prefix(self) -> str:
        """The `root_path`, or an empty string."""
        return self.root_path or ""

    @property
    def is_loopback_only(self) -> bool:
        """Whether, without authentication, only this machine may connect."""
        return self.auth == "none" and not self.trust_network

    @model_validator(mode="after")
    def _check_network_trust(self) -> Self:
        if self.is_loopback_only and not _is_loopback(self.host):
            raise ValueError(
                f"INKWELL_AUTH=none on INKWELL_HOST={self.host} allows anyone to read and write: listen on "
                "127.0.0.1, or set INKWELL_TRUST_NETWORK=true if untrusted clients cannot reach this address"
            )
        return self

    @model_validator(mode="after")
    def _check_body_limit(self) -> Self:
        characters = self.title_max_length + self.description_max_length
        names = "INKWELL_TITLE_MAX_LENGTH + INKWELL_DESCRIPTION_MAX_LENGTH"
        why = f"a character may take {ESCAPED_CHARACTER_BYTES} bytes in JSON"
        needed = characters * ESCAPED_CHARACTER_BYTES + NAMES_BYTES
        if needed > BODY_LIMIT_MAX_BYTES:
            raise ValueError(
                f"{names} must be at most {TEXT_MAX_LENGTH}, not {characters}: {why}, and INKWELL_BODY_LIMIT_BYTES is "
                f"at most {BODY_LIMIT_MAX_BYTES}"
            )
        if needed > self.body_limit_bytes:
            raise ValueError(
                f"{names} = {characters} needs INKWELL_BODY_LIMIT_BYTES={needed} or more: {why}, so the longest note "
                "would not fit into a request"
            )
        return self
