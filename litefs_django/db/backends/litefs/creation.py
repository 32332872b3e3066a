"""Test databases. In memory they need no LiteFS; a TEST NAME on the mount is made and cloned there."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from django.db.backends.sqlite3 import creation

from litefs_django import conf


class DatabaseCreation(creation.DatabaseCreation):
    """As sqlite3's, where a TEST NAME is a file name on the mount."""

    connection: Any

    def _get_test_db_name(self) -> str:
        name: str = super()._get_test_db_name()  # type: ignore[misc]
        if self.is_in_memory_db(name):
            return name
        if not conf.is_enabled():
            return str(conf.file_beside_project(name))
        return str(self.connection.get_litefs_settings().mount_path / name)

    def test_db_signature(self) -> tuple[Any, ...]:
        """As sqlite3's: with the TEST NAME as it is set, not as the file that it is on the mount."""
        name: str = super()._get_test_db_name()  # type: ignore[misc]
        return self.connection.settings_dict["NAME"], self.connection.alias if self.is_in_memory_db(name) else name

    def _clone_test_db(self, suffix: str, verbosity: int, keepdb: bool = False) -> None:
        if not self.connection.is_guarded:
            super()._clone_test_db(suffix, verbosity, keepdb)  # type: ignore[misc]
            return
        # A copied file has no WAL, and would lack whatever is still in the source's.
        target = self.connection.copy(self.connection.alias)
        target.settings_dict |= {"NAME": self.get_test_db_clone_settings(suffix)["NAME"]}
        path = Path(target.settings_dict["NAME"])
        if path.exists():
            if keepdb:
                return
            if verbosity >= 1:
                self.log(f"Destroying old test database {path}...")
            path.unlink()
        self.connection.ensure_connection()
        target.ensure_connection()
        with closing(target):
            self.connection.connection.backup(target.connection)
