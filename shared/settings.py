"""The settings that both services need, and how a service loads its settings."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar
from urllib.parse import unquote

from pydantic import (
    Field,
    Secret,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from shared.addresses import insert_password
from shared.broker_url import BrokerUrl
from shared.database_url import DatabaseUrl
from shared.setting_names import (
    PREFIX,
    is_kubernetes_variable,
    iter_unknown_files,
    iter_unknown_variables,
    list_names,
)

EXIT_BAD_SETTING = 2
MAX_PARTITIONS = 256
DEVELOPMENT_MARK = "development-only"
"""The mark that every built-in development secret contains."""
CONFIG = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", use_attribute_docstrings=True)


class SecretFiles(BaseSettings):
    """The folder of settings in files, as Docker and Kubernetes mount secrets; read before all others."""

    model_config = CONFIG

    secrets_dir: Path = Path("/run/secrets")
    """Folder with settings in files: `inkwell_database_url` holds the setting of that name"""

    @property
    def folder(self) -> Path | None:
        """The folder, or None if it does not exist; raises OSError if it cannot be accessed."""
        try:
            is_folder = S_ISDIR(self.secrets_dir.stat().st_mode)  # `is_dir` hides other errors from Python 3.14 on
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self.secrets_dir if is_folder else None


class Environment(EnvSettingsSource):
    """Reads settings from the environment, except the variables that Kubernetes sets for Services."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the variable's value as pydantic-settings does; None for a variable of a Kubernetes Service."""
        value, key, is_complex = super().get_field_value(field, field_name)
        if value is not None and is_kubernetes_variable(f"{PREFIX}{field_name}", value):
            value = None
        return value, key, is_complex


class DatabaseSettings(BaseSettings):
    """The settings of every program that connects to Postgres, read from `INKWELL_…` variables; frozen."""

    model_config = CONFIG

    environment: Literal["development", "production"] = "production"
    """`development` accepts the built-in development secrets; `production` refuses to start with one"""
    database_password: SecretStr | None = None
    """Password of the user in `INKWELL_DATABASE_URL`, which then contains none"""
    database_url: Secret[DatabaseUrl]
    """Postgres: `postgresql://user:password@host/name`; of several hosts, the primary is used"""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - ours replaces it
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - `.env` is Compose's
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings, by precedence."""
        return init_settings, Environment(settings_cls), file_secret_settings

    @field_validator("database_url", mode="before")
    @classmethod
    def _add_database_password(cls, url: object, info: ValidationInfo) -> object:
        return _add_password(url, info, "database_password")

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        public = [f"INKWELL_{name.upper()}" for name, value in self if any(map(_is_public, iter_secrets(value)))]
        if public and self.environment != "development":
            raise ValueError(
                f"{', '.join(public)}: a secret that contains {DEVELOPMENT_MARK} is public: set your own, "
                "or INKWELL_ENVIRONMENT=development on a machine that no one else can reach"
            )
        return self


class MigrationSettings(DatabaseSettings):
    """The settings of a migration."""

    search_language: str | None = None
    """Language of searches, a text search configuration of Postgres such as `german` or `simple`; a new database has
    `english`. Changing it rewrites all notes, which cannot be read or written meanwhile"""


class ServiceSettings(DatabaseSettings):
    """The settings that both services need."""

    broker_password: SecretStr | None = None
    """Password of the user in `INKWELL_BROKER_URL`, which then contains none"""
    broker_url: Secret[BrokerUrl]
    """RabbitMQ: `amqp://` or `amqps://user:password@host/vhost`; several nodes: `host1,host2:5673`"""
    partitions: Annotated[int, Field(ge=1, le=MAX_PARTITIONS)] | None = None
    """Command queues; unset, as many as the broker has, and 1 if it has none yet. `repartition` changes the number; a
    service with a different one stops working until they agree"""
    queue_prefix: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")] = "inkwell"
    """First part of every queue's name; the same in all services"""
    command_max_age_days: Annotated[float, Field(gt=0, le=365)] = 3.0
    """A command that waited longer, by Postgres' clock, fails as `expired`"""
    command_retention_days: Annotated[float, Field(gt=0, le=3650)] = 7.0
    """How long outcomes are kept and keys count, at least twice the maximum age; after that a command's URL is 410"""
    queue_limit_bytes: Annotated[int, Field(ge=4096)] = 1024 * 1024 * 1024
    """Bytes of commands that a queue takes before writes are `overloaded`; a queue keeps the limit that it
    was made with"""
    metrics_host: str = "127.0.0.1"
    """Address of the metrics' port; `::` means all addresses"""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of the metrics, in Prometheus' format; unset, there are none"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe event to log"""
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto` is `console` on a terminal and `json` otherwise"""

    @field_validator("broker_url", mode="before")
    @classmethod
    def _add_broker_password(cls, url: object, info: ValidationInfo) -> object:
        return _add_password(url, info, "broker_password")

    @model_validator(mode="after")
    def _check_retention(self) -> Self:
        if self.command_retention_days < 2 * self.command_max_age_days:
            raise ValueError(
                "INKWELL_COMMAND_RETENTION_DAYS must be at least twice INKWELL_COMMAND_MAX_AGE_DAYS: a command "
                "delivered after its outcome was pruned would have a second effect"
            )
        return self


def _add_password(url: object, info: ValidationInfo, name: str) -> object:
    """Insert the password of its own setting, which precedes the URL's, into the text of a URL."""
    password = info.data.get(name)
    if not isinstance(url, str) or password is None:
        return url
    try:
        return insert_password(url, password.get_secret_value())
    except ValueError as error:
        raise ValueError(f"{error}, since {PREFIX}{name.upper()} is set") from None


def iter_secrets(value: object) -> Iterator[str]:
    """Yield the secrets in a setting's value."""
    if isinstance(value, (Secret, SecretStr)):
        yield str(value.get_secret_value())
    elif isinstance(value, tuple):
        for item in value:
            yield from iter_secrets(item)


def _is_public(secret: str) -> bool:
    return DEVELOPMENT_MARK in unquote(secret).lower()


SettingsT = TypeVar("SettingsT", bound=DatabaseSettings)


def load_settings(settings_class: type[SettingsT]) -> SettingsT:
    """Load the settings from the environment or else files; prints each invalid one to stderr and exits with 2."""
    own = list_names(settings_class) | list_names(SecretFiles)
    problems = list(iter_unknown_variables(os.environ, own))
    try:
        folder = SecretFiles().folder
        problems += iter_unknown_files((file.name for file in folder.iterdir()), own) if folder else ()
        settings = settings_class(_secrets_dir=folder)
    except SettingsError as error:
        unreadable = isinstance(error.__cause__, (OSError, UnicodeDecodeError))
        problems.append(f"INKWELL_SECRETS_DIR: {error.__cause__}" if unreadable else str(error))
    except OSError as error:  # of the folder itself
        problems.append(f"INKWELL_SECRETS_DIR: {error}")
    except ValidationError as error:
        problems += [_format_error(e["loc"], e["msg"]) for e in error.errors(include_input=False)]
    if problems:
        exit_with_problems(*problems)
    return settings


def _format_error(location: tuple[int | str, ...], message: str) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    which = "".join(f"[{step}]" for step in location[1:])
    return f"INKWELL_{str(location[0]).upper()}{which}: {message.removeprefix('Value error, ')}"


def exit_with_problems(*problems: str) -> NoReturn:
    """Print the problems with the settings to stderr and exit with 2."""
    sys.stderr.writelines(f"wrong setting: {problem}\n" for problem in problems)
    sys.exit(EXIT_BAD_SETTING)
