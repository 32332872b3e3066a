"""What needs no LiteFS; tests/cluster/test_export.py and test_import.py have the rest."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from litefs_django.exceptions import CommitOutcomeUnknown
from litefs_django.management.commands.litefs_import import _check_room
from litefs_django.management.copying import CopyError, count_rows, explaining, find_database, in_words


def test_a_database_is_found_by_alias_and_by_file_name() -> None:
    assert find_database("default") is connections["default"]
    assert find_database("db.sqlite3") is connections["default"]


@pytest.mark.parametrize("command", ["litefs_export", "litefs_import"])
def test_an_unknown_database(command: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        call_command(command, "defualt", str(tmp_path / "file"))
    assert str(caught.value) == "'defualt' is no database on LiteFS. There are: default (db.sqlite3)."


@pytest.mark.parametrize("command", ["litefs_export", "litefs_import"])
def test_without_litefs(command: str, tmp_path: Path) -> None:
    with (
        override_settings(LITEFS={"ENABLED": False}),
        pytest.raises(CommandError, match='LITEFS\\["ENABLED"\\] is False'),
    ):
        call_command(command, "default", str(tmp_path / "file"))


@pytest.mark.parametrize("command", ["litefs_export", "litefs_import"])
def test_settings_that_cannot_work(command: str, tmp_path: Path) -> None:
    with override_settings(LITEFS={"MOUNT_PTAH": "/x"}), pytest.raises(CommandError, match="Did you mean 'MOUNT_PATH'"):
        call_command(command, "default", str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "Interrupted. All is well."),
        (CopyError("No."), "No. All is well."),
        (sqlite3.OperationalError("database is locked"), "database is locked. All is well."),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory. All is well."),
        (CommitOutcomeUnknown("It is not known.", "default"), "It is not known."),
    ],
)
def test_what_went_wrong(error: BaseException, said: str) -> None:
    with pytest.raises(CommandError) as caught, explaining("All is well."):
        raise error
    assert str(caught.value) == said


def test_rows_are_counted_where_the_project_has_put_them() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(
            """
            CREATE TABLE one (id INTEGER PRIMARY KEY AUTOINCREMENT);
            INSERT INTO one VALUES (1), (2);
            CREATE TABLE [two "2"] (x);
            CREATE TABLE sqlitely (x);
            CREATE VIEW three AS SELECT * FROM one;
            """
        )
        assert count_rows(connection) == {"one": 2, 'two "2"': 0, "sqlitely": 0}


def test_room(tmp_path: Path) -> None:
    _check_room(tmp_path, 1)
    with pytest.raises(CopyError, match=r"The disk of .* has .* MB free, and this needs 1,000,000,000,000\.0 MB\."):
        _check_room(tmp_path, 10**18)


@pytest.mark.parametrize(("size", "words"), [(0, "0 bytes"), (99_999, "99,999 bytes"), (1_250_000_000, "1,250.0 MB")])
def test_sizes(size: int, words: str) -> None:
    assert in_words(size) == words
