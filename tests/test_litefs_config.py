from __future__ import annotations

import os
import stat
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from litefs_django import conf
from litefs_django._litefs.config import ConfigGenerator


def run(*arguments: str, **options: object) -> str:
    stdout = StringIO()
    call_command("litefs_config", *arguments, stdout=stdout, **options)
    return stdout.getvalue()


def test_it_prints() -> None:
    assert run() == ConfigGenerator(conf.read()).render()


def test_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "litefs.yml"
    assert run("--output", str(path)) == f"Written to {path}.\n"
    assert path.read_text() == run()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run("--output", str(path), verbosity=0) == ""


@pytest.mark.parametrize("name", ["missing/litefs.yml", "directory"])
def test_it_says_where_it_cannot_write(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(CommandError, match=f"--output {tmp_path / name}: it cannot be written: .+"):
        run("--output", str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_what_is_not_a_file_stays_what_it_is(tmp_path: Path) -> None:
    """/dev/stdout and /dev/null are within root's reach."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(CommandError, match="it is not a file"):
        run("--output", str(path))
    assert path.is_fifo()


def test_a_link_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("litefs.yml")
    run("--output", str(link))
    assert link.is_symlink()
    assert (tmp_path / "litefs.yml").read_text() == run()


@override_settings(LITEFS={"MAX_LAG": 0, "LITEFS_YML": {"exec": "app"}})
def test_it_names_each_wrong_setting() -> None:
    with pytest.raises(CommandError) as error:
        run()
    assert 'LITEFS["MAX_LAG"]' in str(error.value)
    assert 'LITEFS["LITEFS_YML"]["exec"]' in str(error.value)
