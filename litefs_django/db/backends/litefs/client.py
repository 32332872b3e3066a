"""`manage.py dbshell`: read-only on a replica."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any
from urllib.parse import quote

from django.db.backends.sqlite3 import client

from litefs_django import conf


class DatabaseClient(client.DatabaseClient):
    """The sqlite3 shell on the file where this node has it."""

    def runshell(self, parameters: Iterable[str]) -> None:
        database: Any = self.connection
        shell = database.copy()
        options: list[str] = []
        if database.is_guarded:
            # The shell would make a plain file where LiteFS is not mounted: this refuses, or makes it properly.
            with closing(database.get_new_connection(database.get_connection_params())) as connection:
                mode = "rw" if connection.is_writable else "ro"
            shell.settings_dict["NAME"] = f"file:{quote(str(database.place.path))}?mode={mode}"
            options = ["-readonly"] if mode == "ro" else []
        elif not database.is_in_memory_db():
            shell.settings_dict["NAME"] = conf.file_beside_project(database.settings_dict["NAME"])
        client.DatabaseClient(shell).runshell([*options, *parameters])
