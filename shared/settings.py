"""Settings both services need, and the one way in which a service loads its settings."""

import sys
from typing import Annotated, Literal, NoReturn, Self, TypeVar

from pydantic import AmqpDsn, Field, PostgresDsn, Secret, UrlConstraints, ValidationError, model_validator
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
    command_max_age_days: Annotated[
        float, Field(gt=0, le=365, description="Days after which a command that waits is not applied any more")
    ] = 3.0
    command_retention_days: Annotated[
        float, Field(gt=0, le=3650, description="Days for which outcomes are kept; at least twice the greatest age")
    ] = 7.0
    queue_limit_bytes: Annotated[
        int, Field(ge=4096, description="Bytes of commands that a queue takes; counts when the queues are made")
    ] = 1024 * 1024 * 1024
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe event to log")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Field(description="`auto` is `console` on a terminal and `json` elsewhere"),
    ] = "auto"

    @model_validator(mode="after")
    def _outcomes_outlive_their_commands(self) -> Self:
        if self.command_retention_days < 2 * self.command_max_age_days:
            raise ValueError(
                "INKWELL_COMMAND_RETENTION_DAYS must be at least twice INKWELL_COMMAND_MAX_AGE_DAYS: a command that "
                "comes after its outcome was pruned would have a second effect"
            )
        return self


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
