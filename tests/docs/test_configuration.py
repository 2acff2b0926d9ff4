"""docs/configuration.md lists every setting of the services, and its commands generate valid secrets."""

import re
import shutil
import subprocess
from pathlib import Path

from dev.backend import ROOT
from dev.settings_table import PATH, TABLES, tables

PAGE = PATH.read_text()


def test_tables_are_those_of_the_settings_classes() -> None:
    assert tables(PAGE) == PAGE, "run `make generate`"


def test_every_setting_is_listed_with_a_meaning() -> None:
    listed = re.findall(r"^\| \[?`(INKWELL_\w+)`\S* \| .+ \| .* \| (.*) \|$", PAGE, re.MULTILINE)

    fields = {field for classes in TABLES.values() for each in classes for field in each.model_fields}
    assert {name for name, _ in listed} == {f"INKWELL_{field.upper()}" for field in fields}
    assert [name for name, meaning in listed if not meaning] == []


def test_commands_draw_a_secret_of_its_own_for_each_that_the_example_lacks(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".env.example", tmp_path)
    lacking = re.findall(r"^([A-Z_]+)=$", (tmp_path / ".env.example").read_text(), re.MULTILINE)
    [commands] = re.findall(r"```bash\n(umask.*?)```", PAGE, re.DOTALL)

    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, check=True)  # noqa: S607 - as typed

    made = dict(re.findall(r"^([A-Z_]+)=([0-9a-f]{64})$", (tmp_path / ".env").read_text(), re.MULTILINE))
    assert list(made) == lacking
    assert len(set(made.values())) == len(lacking)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
