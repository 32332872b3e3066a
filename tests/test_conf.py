from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from litefs_django import conf
from litefs_django._litefs.errors import SettingsError

WRONG = {"MOUNT_PATH": "litefs", "MAX_LAG": 0}


def database(name: Any = "db.sqlite3", engine: str = conf.ENGINE) -> dict[str, Any]:
    return {"ENGINE": engine, "NAME": name}


def test_it_reads_once() -> None:
    assert conf.read() is conf.read()
    assert conf.get_settings() is conf.read()
    assert conf.read().cluster.this.name == "node1"


def test_a_changed_setting_is_seen() -> None:
    before = conf.read()
    with override_settings(LITEFS={"NODE": "other"}):
        assert conf.read().cluster.this.name == "other"
        with override_settings(TIME_ZONE="UTC"):
            assert conf.read() is conf.read()
    assert conf.read() == before


@override_settings()
def test_litefs_need_not_be_set() -> None:
    del settings.LITEFS
    conf.read.cache_clear()
    assert conf.is_enabled()
    assert conf.read().leader_election == "static"


def test_only_our_databases_are_read() -> None:
    databases = {
        "default": database("/nonexistent/litefs/a"),
        "other": database(engine="django.db.backends.postgresql"),
        "memory": database(":memory:"),
        "shared": database("file:memorydb_default?mode=memory&cache=shared"),
    }
    # Django warns that DATABASES cannot be overridden: it does not forget its connections.
    with pytest.warns(UserWarning, match="DATABASES"), override_settings(DATABASES=databases):
        assert [(it.alias, it.name) for it in conf.read().databases] == [("default", "a")]


def test_every_problem_is_raised() -> None:
    with override_settings(LITEFS=WRONG):
        with pytest.raises(SettingsError) as error:
            conf.read()
        with pytest.raises(ImproperlyConfigured) as improper:
            conf.get_settings()
    assert len(error.value.problems) == 2
    assert str(improper.value) == str(error.value)
    assert 'LITEFS["MOUNT_PATH"]' in str(improper.value)
    assert 'LITEFS["MAX_LAG"]' in str(improper.value)


@pytest.mark.parametrize(
    ("litefs", "expected"),
    [({}, True), ({"ENABLED": True}, True), ({"ENABLED": False, **WRONG}, False), ({"ENABLED": 0}, True), (None, True)],
)
def test_whether_it_is_enabled(litefs: Any, expected: bool) -> None:
    """A wrong ENABLED is a mistake to report, and not the same as False."""
    with override_settings(LITEFS=litefs):
        assert conf.is_enabled() is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("db.sqlite3", "/project/db.sqlite3"),
        (Path("db.sqlite3"), "/project/db.sqlite3"),
        ("/srv/litefs/db.sqlite3", "/project/db.sqlite3"),
        ("/elsewhere/db.sqlite3", "/elsewhere/db.sqlite3"),
    ],
)
@override_settings(BASE_DIR="/project", LITEFS={"ENABLED": False, "MOUNT_PATH": "/srv/litefs"})
def test_files_beside_the_project(name: str | Path, expected: str) -> None:
    assert conf.file_beside_project(name) == Path(expected)


def test_beside_the_project_is_here_without_base_dir() -> None:
    assert conf.file_beside_project("db.sqlite3") == Path("db.sqlite3")
