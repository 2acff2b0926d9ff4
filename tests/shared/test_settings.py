"""Wrong settings end a process at once with a line that names what to correct."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from dev.backend import ROOT
from gateway.settings import GatewaySettings, Key
from shared.setting_names import iter_unknown_files, iter_unknown_variables, list_names
from shared.settings import (
    DEVELOPMENT_MARK,
    DatabaseSettings,
    MigrationSettings,
    SecretFiles,
    ServiceSettings,
    load_settings,
)
from tests.support.programs import GOOD, KEY, PUBLIC_KEY, SECRET, URLS, assert_one_line_names, assert_refused, run
from worker.settings import WorkerSettings

SERVICES = (GatewaySettings, WorkerSettings)
WRONG_IN_BOTH = [
    ("INKWELL_DATABASE_URL", None),
    ("INKWELL_DATABASE_URL", ""),
    ("INKWELL_DATABASE_URL", SECRET),
    ("INKWELL_DATABASE_URL", f"mysql://inkwell:{SECRET}@127.0.0.1/inkwell"),
    ("INKWELL_BROKER_URL", None),
    ("INKWELL_BROKER_URL", f"http://inkwell:{SECRET}@127.0.0.1/"),
    ("INKWELL_BROKER_URL", f"amqp://inkwell:{SECRET}@127.0.0.1:port/"),
    ("INKWELL_PARTITIONS", SECRET),
    ("INKWELL_QUEUE_PREFIX", "Ink.Well"),
    ("INKWELL_ENVIRONMENT", "staging"),
]
WRONG_IN_GATEWAY = [
    ("INKWELL_SIGNING_KEYS", None),
    ("INKWELL_SIGNING_KEYS", SECRET),
    ("INKWELL_SIGNING_KEYS", f"{KEY},{SECRET}"),
    ("INKWELL_FINGERPRINT_KEY", None),
    ("INKWELL_FINGERPRINT_KEY", SECRET),
    ("INKWELL_WAIT_SECONDS", "nan"),
    *[
        ("INKWELL_CORS_ORIGINS", value)
        for value in ("*", "notes.example", "https://notes.example/", "https://*.example")
    ],
]
WRONG_IN_WORKER = [("INKWELL_BATCH_COMMANDS", "0"), ("INKWELL_DRAIN_TIMEOUT_SECONDS", "inf")]


Refuse = Callable[..., str]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Loads a class of settings as the services do, from good ones but for the changes; returns what is on stderr.

    `test_misspelt_variable_is_named_with_the_nearest_one_that_there_is` covers the programs that do so.
    """

    def refuse(settings_class: type[DatabaseSettings], **changes: str | None) -> str:
        for name, value in (GOOD | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            load_settings(settings_class)
        printed = capsys.readouterr()
        assert (ended.value.code, printed.out) == (2, "")
        return printed.err

    return refuse


@pytest.mark.parametrize("service", ["gateway", "worker"])
def test_service_ends_and_names_its_wrong_setting(service: str) -> None:
    ended = run(service, INKWELL_DATABASE_URL=f"mysql://inkwell:{SECRET}@127.0.0.1/inkwell")

    assert_refused(ended, "INKWELL_DATABASE_URL")


@pytest.mark.parametrize("service", ["gateway", "worker"])
def test_metrics_port_that_is_taken_is_named(service: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run(service, INKWELL_METRICS_PORT=str(taken.getsockname()[1]))

    assert_refused(ended, "INKWELL_METRICS_PORT")


@pytest.mark.parametrize("service", SERVICES)
def test_retention_under_which_a_late_delivery_would_act_twice_is_named(
    refuse: Refuse, service: type[ServiceSettings]
) -> None:
    line = refuse(service, INKWELL_COMMAND_MAX_AGE_DAYS="4")

    assert_one_line_names(line, "INKWELL_COMMAND_RETENTION_DAYS", "INKWELL_COMMAND_MAX_AGE_DAYS")


@pytest.mark.parametrize(
    ("service", "name", "value"),
    [
        *[(service, name, URLS[name]) for service in SERVICES for name in URLS],
        (GatewaySettings, "INKWELL_SIGNING_KEYS", f"{KEY},{PUBLIC_KEY}"),
        (GatewaySettings, "INKWELL_FINGERPRINT_KEY", PUBLIC_KEY.upper()),
    ],
)
def test_secret_for_development_is_refused_elsewhere(
    refuse: Refuse, service: type[ServiceSettings], name: str, value: str
) -> None:
    assert_one_line_names(refuse(service, **{name: value}), name, "INKWELL_ENVIRONMENT")


def test_migrator_refuses_a_password_for_development() -> None:
    name = "INKWELL_DATABASE_URL"

    assert_refused(run("alembic", "upgrade", "head", **{name: URLS[name]}), name, "INKWELL_ENVIRONMENT")


def test_every_secret_for_development_is_named(refuse: Refuse) -> None:
    line = refuse(GatewaySettings, INKWELL_FINGERPRINT_KEY=PUBLIC_KEY, **URLS)

    assert_one_line_names(line, "INKWELL_FINGERPRINT_KEY", *URLS)


def test_secrets_for_development_are_good_enough_there() -> None:
    public = settings(environment="development", fingerprint_key=PUBLIC_KEY, database_url=URLS["INKWELL_DATABASE_URL"])

    assert public.fingerprint_key.get_secret_value() == PUBLIC_KEY


def test_key_that_a_later_version_adds_is_checked_too() -> None:
    class LaterSettings(GatewaySettings):
        another_key: Key

    values = settings().model_dump() | {"another_key": PUBLIC_KEY}
    with pytest.raises(ValidationError, match="INKWELL_ANOTHER_KEY"):
        LaterSettings.model_validate(values)


def test_every_secret_that_compose_has_a_default_for_is_marked_and_in_the_example() -> None:
    secrets = re.findall(r"\$\{(\w+(?:PASSWORD|KEYS?)):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text())

    assert {"POSTGRES_PASSWORD", "INKWELL_SIGNING_KEYS", "RABBITMQ_GATEWAY_PASSWORD"} <= {name for name, _ in secrets}
    assert [name for name, default in secrets if DEVELOPMENT_MARK not in default] == []
    example = (ROOT / ".env.example").read_text().splitlines()
    assert [name for name, _ in secrets if f"{name}=" not in example] == []


def test_migrator_ends_and_names_its_wrong_setting() -> None:
    assert_refused(run("alembic", "upgrade", "head", INKWELL_DATABASE_URL=SECRET), "INKWELL_DATABASE_URL")


@pytest.mark.parametrize(
    ("service", "name", "value"),
    [
        *[(GatewaySettings, *setting) for setting in WRONG_IN_BOTH + WRONG_IN_GATEWAY],
        *[(WorkerSettings, *setting) for setting in WRONG_IN_BOTH + WRONG_IN_WORKER],
    ],
)
def test_wrong_setting_is_named_and_its_value_is_not_shown(
    refuse: Refuse, service: type[ServiceSettings], name: str, value: str | None
) -> None:
    assert_one_line_names(refuse(service, **{name: value}), name)


def test_every_wrong_setting_has_its_line(refuse: Refuse) -> None:
    lines = refuse(GatewaySettings, INKWELL_DATABASE_URL=None, INKWELL_PORT="http", INKWELL_FINGERPRINT_KEY=SECRET)

    names = ["INKWELL_DATABASE_URL", "INKWELL_FINGERPRINT_KEY", "INKWELL_PORT"]
    assert sorted(line.split(": ")[1] for line in lines.splitlines()) == names
    assert SECRET not in lines


def test_note_limits_that_do_not_fit_into_a_body_are_named(refuse: Refuse) -> None:
    line = refuse(GatewaySettings, INKWELL_TITLE_MAX_LENGTH="1024", INKWELL_BODY_LIMIT_BYTES="1024")

    assert_one_line_names(
        line, "INKWELL_TITLE_MAX_LENGTH", "INKWELL_DESCRIPTION_MAX_LENGTH", "INKWELL_BODY_LIMIT_BYTES=14788 or more"
    )
    settings(title_max_length=1024, body_limit_bytes=14788)


def test_note_limits_that_fit_into_no_body_are_refused_with_the_greatest_that_do(refuse: Refuse) -> None:
    line = refuse(GatewaySettings, INKWELL_DESCRIPTION_MAX_LENGTH="1000000")

    assert_one_line_names(
        line, "INKWELL_DESCRIPTION_MAX_LENGTH must be at most 87373", "INKWELL_BODY_LIMIT_BYTES is at most 1048576"
    )
    settings(title_max_length=50, description_max_length=87_323, body_limit_bytes=1024 * 1024)


def test_note_limits_must_fit_into_a_body_in_any_script() -> None:
    bytes_of_an_emoji = len(json.dumps("🖋")) - 2
    settings(description_max_length=60_000 // bytes_of_an_emoji - 50)

    with pytest.raises(ValidationError, match="INKWELL_BODY_LIMIT_BYTES"):
        settings(description_max_length=66_000 // bytes_of_an_emoji)


PROGRAMS = [
    ("gateway",),
    ("gateway", "doctor"),
    ("worker",),
    ("worker", "doctor"),
    ("worker", "dead-letters", "list"),
    ("alembic", "upgrade", "head"),
    ("shared.wait_for_postgres",),
    ("shared.wait_for_schema",),
    ("uvicorn", "--factory", "gateway.app:create_app"),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_misspelt_variable_is_named_with_the_nearest_one_that_there_is(program: tuple[str, ...]) -> None:
    ended = run(*program, INKWELL_READ_CONECTIONS=SECRET)

    assert_refused(ended, "INKWELL_READ_CONECTIONS:", "INKWELL_READ_CONNECTIONS?")


def test_misspelt_variable_and_the_setting_that_is_missing_for_it_are_both_named(refuse: Refuse) -> None:
    changes = {"INKWELL_DATABASE_URL": None, "INKWELL_DATABSE_URL": GOOD["INKWELL_DATABASE_URL"], "INKWELL_X": "1"}
    lines = refuse(WorkerSettings, **changes)

    assert [line.removeprefix("wrong setting: ") for line in lines.splitlines()] == [
        "INKWELL_DATABSE_URL: unknown setting; did you mean INKWELL_DATABASE_URL?",
        "INKWELL_X: unknown setting",
        "INKWELL_DATABASE_URL: Field required",
    ]


OF_KUBERNETES = {
    "INKWELL_SERVICE_HOST": "10.0.0.1",
    "INKWELL_SERVICE_PORT": "8000",
    "INKWELL_SERVICE_PORT_HTTP": "8000",
    "INKWELL_PORT": "tcp://10.0.0.1:8000",
    "INKWELL_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "INKWELL_PORT_8000_TCP_PROTO": "tcp",
    "INKWELL_PORT_8000_TCP_PORT": "8000",
    "INKWELL_PORT_8000_TCP_ADDR": "10.0.0.1",
    "INKWELL_GATEWAY_SERVICE_HOST": "10.0.0.2",
    "INKWELL_GATEWAY_SERVICE_PORT": "80",
    "INKWELL_GATEWAY_PORT": "tcp://10.0.0.2:80",
    "INKWELL_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.2",
    "INKWELL_METRICS_PORT": "udp://[fd00::1]:9464",
    "INKWELL_WORKER_HEALTH_PORT": "tcp://10.0.0.3:8081",
}
"""The variables that the kubelet sets for Services named inkwell, inkwell-gateway, inkwell-metrics and so on."""


@pytest.mark.parametrize("service", [GatewaySettings, WorkerSettings, DatabaseSettings, MigrationSettings])
def test_variables_that_kubernetes_makes_of_services_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, service: type[DatabaseSettings]
) -> None:
    for name, value in (GOOD | OF_KUBERNETES).items():
        monkeypatch.setenv(name, value)

    loaded = load_settings(service)

    of_kubernetes = ("port", "metrics_port", "worker_health_port")
    assert loaded.model_fields_set & {*of_kubernetes} == set()


def test_port_from_a_file_counts_where_kubernetes_has_made_a_variable_of_its_name(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "inkwell_port").write_text("8123")
    monkeypatch.setenv("INKWELL_PORT", OF_KUBERNETES["INKWELL_PORT"])

    assert load_settings(GatewaySettings).port == 8123


@pytest.mark.parametrize("name", ["INKWELL_GATEWAY_PORT", "INKWELL_SERVICE_HOSTS", "INKWELL_PORT_8000", "inkwell_prot"])
def test_variable_that_only_resembles_one_of_kubernetes_is_refused(refuse: Refuse, name: str) -> None:
    assert_one_line_names(refuse(GatewaySettings, **{name: "8000"}), name)


@pytest.mark.parametrize("service", [GatewaySettings, WorkerSettings, DatabaseSettings, MigrationSettings])
def test_settings_of_every_service_are_accepted_by_each(
    monkeypatch: pytest.MonkeyPatch, service: type[DatabaseSettings]
) -> None:
    others = {
        "INKWELL_WAIT_SECONDS": "1",
        "INKWELL_BATCH_COMMANDS": "10",
        "INKWELL_SEARCH_LANGUAGE": "german",
        "INKWELL_STATE": "/nowhere",
        "INKWELL_URL": "http://127.0.0.1:8000",
        "INKWELL_TOKEN": KEY,
        "inkwell_log_level": "debug",
    }
    for name, value in (GOOD | others).items():
        monkeypatch.setenv(name, value)

    load_settings(service)


@pytest.mark.parametrize(
    "settings_class", [SecretFiles, DatabaseSettings, MigrationSettings, GatewaySettings, WorkerSettings]
)
def test_every_setting_of_a_class_is_known_to_a_program_that_has_none_of_it(settings_class: type[BaseSettings]) -> None:
    names = list_names(settings_class)

    assert len(names) == len(settings_class.model_fields)
    assert list(iter_unknown_variables(dict.fromkeys(names, "1"), ())) == []
    assert list(iter_unknown_files(map(str.lower, names), ())) == []


def test_misspelt_file_is_named_and_other_secrets_are_ignored(
    secrets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (secrets / "postgres_password").write_text(SECRET)
    load_settings(WorkerSettings)
    (secrets / "inkwell_brocker_url").write_text(SECRET)

    with pytest.raises(SystemExit) as ended:
        load_settings(WorkerSettings)

    assert ended.value.code == 2
    assert_one_line_names(
        capsys.readouterr().err, "INKWELL_SECRETS_DIR", "inkwell_brocker_url", "did you mean inkwell_broker_url?"
    )


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with valid settings in files, linked as by Kubernetes; the environment has none."""
    (tmp_path / "..first").mkdir()
    (tmp_path / "..data").symlink_to("..first")
    for name, value in GOOD.items():
        monkeypatch.delenv(name, raising=False)
        (tmp_path / name.lower()).symlink_to(f"..data/{name.lower()}")
        (tmp_path / name.lower()).write_text(f"{value}\n")
    monkeypatch.setenv("INKWELL_SECRETS_DIR", str(tmp_path))
    return tmp_path


def test_settings_may_be_files(secrets: Path) -> None:
    (secrets / "inkwell_signing_keys").write_text(f"{KEY}-new,{KEY}\n")

    loaded = load_settings(GatewaySettings)

    assert [key.get_secret_value() for key in loaded.signing_keys] == [f"{KEY}-new", KEY]
    assert str(loaded.database_url.get_secret_value()) == GOOD["INKWELL_DATABASE_URL"]
    assert loaded.model_dump() == settings(signing_keys=f"{KEY}-new,{KEY}").model_dump()


@pytest.mark.parametrize("password", [SECRET, "s/la:sh @ per%cent?"])
def test_password_may_be_a_setting_of_its_own_with_any_character(secrets: Path, password: str) -> None:
    (secrets / "inkwell_database_url").write_text("postgresql://inkwell@h1,h2:5433/notes?connect_timeout=3")
    (secrets / "inkwell_database_password").write_text(password)
    (secrets / "inkwell_broker_url").write_text("amqps://inkwell@h1/?heartbeat=7")
    (secrets / "inkwell_broker_password").write_text(password)

    loaded = load_settings(WorkerSettings)

    database, broker = loaded.database_url.get_secret_value(), loaded.broker_url.get_secret_value()
    assert (database.parameters["user"], database.parameters["password"]) == ("inkwell", password)
    assert database.hosts == (("h1", 5432), ("h2", 5433))
    assert database.parameters["connect_timeout"] == "3"
    node = broker.url_of(*broker.hosts[0])
    assert (node.user, node.password, node.query_string) == ("inkwell", password, "heartbeat=7")
    assert password not in repr(loaded)


@pytest.mark.parametrize("name", ["DATABASE", "BROKER"])
@pytest.mark.parametrize("userinfo", ["", f"inkwell:{SECRET}@", "inkwell:@"])
def test_url_beside_a_password_needs_a_user_and_no_password(refuse: Refuse, name: str, userinfo: str) -> None:
    scheme = {"DATABASE": "postgresql", "BROKER": "amqp"}[name]

    line = refuse(
        WorkerSettings,
        **{f"INKWELL_{name}_URL": f"{scheme}://{userinfo}127.0.0.1:1/", f"INKWELL_{name}_PASSWORD": SECRET},
    )

    assert_one_line_names(line, f"INKWELL_{name}_URL", f"INKWELL_{name}_PASSWORD")


@pytest.mark.parametrize("name", ["DATABASE", "BROKER"])
def test_password_of_its_own_for_development_is_refused_elsewhere(refuse: Refuse, name: str) -> None:
    url = GOOD[f"INKWELL_{name}_URL"].replace(f":{SECRET}", "")

    line = refuse(WorkerSettings, **{f"INKWELL_{name}_URL": url, f"INKWELL_{name}_PASSWORD": PUBLIC_KEY})

    assert_one_line_names(line, f"INKWELL_{name}_PASSWORD", "INKWELL_ENVIRONMENT")


def test_environment_wins_over_files(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "inkwell_queue_prefix").write_text("from-a-file")
    (secrets / "inkwell_partitions").write_text("3")
    monkeypatch.setenv("INKWELL_QUEUE_PREFIX", "from-the-environment")

    loaded = load_settings(WorkerSettings)

    assert (loaded.queue_prefix, loaded.partitions) == ("from-the-environment", 3)


def test_folder_of_secrets_may_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("INKWELL_SECRETS_DIR", str(tmp_path / "missing"))

    assert load_settings(GatewaySettings).model_dump() == settings().model_dump()


@pytest.mark.parametrize("service", SERVICES)
def test_wrong_setting_in_a_file_is_named_as_one_of_the_environment(
    refuse: Refuse, service: type[ServiceSettings], tmp_path: Path
) -> None:
    (tmp_path / "inkwell_broker_url").write_text(f"http://inkwell:{SECRET}@127.0.0.1/")

    line = refuse(service, INKWELL_BROKER_URL=None, INKWELL_SECRETS_DIR=str(tmp_path))

    assert_one_line_names(line, "INKWELL_BROKER_URL")


def test_migrator_reads_files_and_refuses_a_password_for_development_there_too(tmp_path: Path) -> None:
    name = "INKWELL_DATABASE_URL"
    (tmp_path / name.lower()).write_text(URLS[name])

    ended = run("alembic", "upgrade", "head", **{name: None}, INKWELL_SECRETS_DIR=str(tmp_path))

    assert_refused(ended, name, "INKWELL_ENVIRONMENT")


def test_file_that_cannot_be_read_is_refused(secrets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (secrets / "inkwell_database_url").write_bytes(b"\xff")

    with pytest.raises(SystemExit) as ended:
        load_settings(WorkerSettings)

    assert ended.value.code == 2
    assert_one_line_names(capsys.readouterr().err, "INKWELL_SECRETS_DIR")


@pytest.mark.parametrize("service", SERVICES)
def test_folder_that_cannot_be_looked_at_is_refused(refuse: Refuse, service: type[ServiceSettings]) -> None:
    assert_one_line_names(refuse(service, INKWELL_SECRETS_DIR="/" + "x" * 300), "INKWELL_SECRETS_DIR")


def settings(**changes: int | str) -> GatewaySettings:
    names = {name.removeprefix("INKWELL_").lower(): value for name, value in GOOD.items()}
    return GatewaySettings.model_validate({**names, **changes})


def test_settings_show_no_secret() -> None:
    shown = repr(settings()) + str(settings()) + settings().model_dump_json()

    assert SECRET not in shown
    assert KEY not in shown


def test_rate_that_is_none_is_named(refuse: Refuse) -> None:
    assert "INKWELL_LOGIN_LIMIT: " in refuse(GatewaySettings, INKWELL_LOGIN_LIMIT="often")


def test_name_of_a_host_is_not_this_machine_alone(refuse: Refuse) -> None:
    assert "INKWELL_AUTH=none on INKWELL_HOST=notes.test" in refuse(
        GatewaySettings, INKWELL_AUTH="none", INKWELL_HOST="notes.test"
    )
