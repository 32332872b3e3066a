"""`manage.py dbshell`: read-only on a replica."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from typing import Any

from django.db.backends.sqlite3 import client

from litefs_django import conf


class DatabaseClient(client.DatabaseClient):
    """The sqlite3 shell on the file where this node has it."""

    def runshell(self, parameters: Iterable[str]) -> None:
        database: Any = self.connection
        settings = dict(database.settings_dict)
        options: list[str] = []
        if database.is_guarded:
            # The shell would make a plain file where LiteFS is not mounted: this refuses, or makes it properly.
            database.ensure_connection()
            settings["NAME"] = database.place.path
            options = [] if database.connection.is_writable else ["-readonly"]
        elif not database.is_in_memory_db():
            settings["NAME"] = conf.file_beside_project(settings["NAME"])
        arguments, env = self.settings_to_cmd_args_env(settings, [*options, *parameters])
        subprocess.run(arguments, env=env, check=True)
