"""Settings both services need, and the one way in which a service loads its settings."""

import sys
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import AmqpDsn, Field, PostgresDsn, Secret, UrlConstraints, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

EXIT_BAD_SETTING = 2


class DatabaseUrl(PostgresDsn):
    """A Postgres URL as libpq knows it."""

    _constraints = UrlConstraints(host_required=True, allowed_schemes=["postgresql", "postgres"])


class ServiceSettings(BaseSettings):
    """Read once from `INKWELL_…` environment variables; frozen from then on."""

    model_config = SettingsConfigDict(env_prefix="INKWELL_", frozen=True, extra="ignore")

    database_url: Annotated[Secret[DatabaseUrl], Field(description="Postgres, as postgresql://user:password@host/name")]
    broker_url: Annotated[
        Secret[AmqpDsn], Field(description="RabbitMQ, as amqp:// or amqps://user:password@host/vhost")
    ]
    partitions: Annotated[
        int, Field(ge=1, le=256, description="Command queues; change it only while they are empty")
    ] = 8
    queue_prefix: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="First part of every queue's name")
    ] = "inkwell"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe event to log")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Field(description="`auto` is `console` on a terminal and `json` elsewhere"),
    ] = "auto"


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load_settings(settings_class: type[SettingsT]) -> SettingsT:
    """The settings from the environment; names every wrong one on stderr and exits with 2."""
    try:
        return settings_class()
    except SettingsError as error:
        _refuse(str(error))
    except ValidationError as error:
        _refuse(*(_sentence(e["loc"], e["msg"]) for e in error.errors(include_input=False)))


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    which = "".join(f"[{step}]" for step in location[1:])
    return f"INKWELL_{str(location[0]).upper()}{which}: {message.removeprefix('Value error, ')}"


def _refuse(*problems: str) -> NoReturn:
    sys.stderr.writelines(f"wrong setting: {problem}\n" for problem in problems)
    sys.exit(EXIT_BAD_SETTING)
