"""The README's tables list what there is."""

import re
from pathlib import Path

from gateway.problems import PROBLEM_TYPES
from gateway.settings import GatewaySettings
from shared.settings import MigrationSettings, SecretFiles
from worker.settings import WorkerSettings

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def test_readme_lists_the_codes_by_status_and_code() -> None:
    listed = re.findall(r"^\| `([a-z_]+)` \| (\d+) \|", README, re.MULTILINE)

    assert [(int(status), code) for code, status in listed] == sorted(
        (each.status, code) for code, each in PROBLEM_TYPES.items()
    )


def test_readme_lists_the_settings_with_their_defaults() -> None:
    listed = dict(re.findall(r"^\| `(INKWELL_\w+)` \| `?([^|`]+)`? \|", README, re.MULTILINE))

    models = (SecretFiles, GatewaySettings, WorkerSettings, MigrationSettings)
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    assert listed.keys() == {f"INKWELL_{name.upper()}" for name in fields}
    for name, field in fields.items():
        default = "required" if field.is_required() else str(field.default).removesuffix(".0").lower()
        assert listed[f"INKWELL_{name.upper()}"].removesuffix(".0") == default.replace("()", "none")
