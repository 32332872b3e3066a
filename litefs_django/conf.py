"""The only reader of `settings.LITEFS`: lazy, typed, forgotten when a test changes a setting."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from litefs_django._litefs.errors import SettingsError
from litefs_django._litefs.reach import missing_extra
from litefs_django._litefs.reading import read_settings
from litefs_django._litefs.settings import LiteFSSettings, is_in_memory_name

ENGINE = "litefs_django.db.backends.litefs"

_names_at_setup: dict[str, object] = {}


@lru_cache(maxsize=1)
def read() -> LiteFSSettings:
    """The settings, valid. Raises SettingsError with every problem."""
    names = {
        alias: database.get("NAME")
        for alias, database in settings.DATABASES.items()
        if database.get("ENGINE") == ENGINE and not _is_in_memory_for_tests(alias, database)
    }
    found = read_settings(getattr(settings, "LITEFS", {}), names)
    if found.enabled and (problem := missing_extra(found)):
        raise SettingsError([problem])
    return found


def get_settings() -> LiteFSSettings:
    """The settings, valid. Raises ImproperlyConfigured that names every problem."""
    try:
        return read()
    except SettingsError as error:
        raise ImproperlyConfigured(str(error)) from error


def is_enabled() -> bool:
    """Whether LiteFS is in use at all. With ENABLED False nothing else in LITEFS is looked at."""
    configured = getattr(settings, "LITEFS", {})
    return not (isinstance(configured, Mapping) and configured.get("ENABLED") is False)


def has_databases() -> bool:
    """Whether any database lies on LiteFS; none does under Django's test runner, which has them in memory."""
    return any(
        database.get("ENGINE") == ENGINE and not is_in_memory(database) for database in settings.DATABASES.values()
    )


def is_in_memory(database: Mapping[str, Any]) -> bool:
    """Whether this is one of SQLite's in-memory databases, as Django's test runner makes them."""
    return is_in_memory_name(str(database.get("NAME") or ""))


def remember_names() -> None:
    """Notes each NAME as the settings have it. To be called when Django is set up: test databases come later."""
    _names_at_setup.update((alias, database.get("NAME")) for alias, database in settings.DATABASES.items())


def _is_in_memory_for_tests(alias: str, database: Mapping[str, object]) -> bool:
    """Whether an in-memory database is a test's. Elsewhere each process would have one of its own.

    The test runner and `testserver` put their NAME in the place of the settings'; the latter makes no test
    environment, and in one settings may be written for tests.
    """
    if not is_in_memory(database):
        return False
    # Not imported for this: it takes long, and whoever has set one up has imported it.
    test_utils = sys.modules.get("django.test.utils")
    in_test_environment = hasattr(getattr(test_utils, "_TestState", None), "saved_data")
    return in_test_environment or database.get("NAME") != _names_at_setup.get(alias, database.get("NAME"))


def file_beside_project(name: str | Path) -> Path:
    """Where a database lies when LITEFS["ENABLED"] is False: under BASE_DIR, also one that is named on the mount."""
    path = Path(name)
    if path.is_absolute() and path.parent == Path(getattr(settings, "LITEFS", {}).get("MOUNT_PATH", "/litefs")):
        path = Path(path.name)
    return Path(getattr(settings, "BASE_DIR", "")) / path


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in ("LITEFS", "DATABASES", "BASE_DIR"):
        read.cache_clear()


setting_changed.connect(_forget)
