"""Django on any node of a cluster: connections in this process, and processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

from django.db import connections
from django.db.utils import ConnectionHandler

from litefs_django import conf
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.models import Author, Book, Tag
from tests.cluster.nodes import DATABASE, LiteFSNode

ROOT = Path(__file__).parents[2]


def open_connection(
    node: LiteFSNode, name: str = DATABASE, *, alias: str | None = None, **options: Any
) -> DatabaseWrapper:
    """A Django connection to a database on that node, which the ORM of this thread knows by its alias.

    The alias is the node's name unless given, `options` are its OPTIONS. It opens at its first use.
    """

    class NodeConnection(DatabaseWrapper):
        def get_litefs_settings(self) -> LiteFSSettings:
            return node.settings

    alias = alias or node.name
    configured = {alias: {"ENGINE": conf.ENGINE, "NAME": name, "OPTIONS": options}, "default": {}}
    connections[alias] = NodeConnection(ConnectionHandler(configured).settings[alias], alias)
    return cast(DatabaseWrapper, connections[alias])


class DjangoConnections:
    """`open_connection`, for any thread; as a context manager it closes them all."""

    def __init__(self) -> None:
        self._opened: list[DatabaseWrapper] = []

    def __call__(
        self, node: LiteFSNode, name: str = DATABASE, *, alias: str | None = None, **options: Any
    ) -> DatabaseWrapper:
        connection = open_connection(node, name, alias=alias, **options)
        self._opened.append(connection)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self._opened:
            # Those of other threads too.
            connection.inc_thread_sharing()
            connection.close()
            with suppress(AttributeError):
                del connections[connection.alias]


def create_tables(connection: DatabaseWrapper) -> None:
    """The tables of `tests.cluster.models`."""
    with connection.schema_editor() as editor:
        for model in (Author, Tag, Book):
            editor.create_model(model)


def python(node: LiteFSNode, code: str, name: str = DATABASE, **options: Any) -> dict[str, Any]:
    """Arguments for subprocess.Popen or run: a process that runs `code` with Django set up on that node."""
    return {
        "args": [sys.executable, "-c", f"import django; django.setup()\n{code}"],
        "cwd": ROOT,
        "env": {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.cluster.project_settings",
            "LITEFS_TEST_LITEFS": json.dumps(node.litefs),
            "LITEFS_TEST_DATABASE": name,
            "LITEFS_TEST_OPTIONS": json.dumps(options),
        },
        "stdin": subprocess.DEVNULL,
        "text": True,
    }


def run_python(node: LiteFSNode, code: str, name: str = DATABASE, *, timeout: float = 60, **options: Any) -> str:
    """Runs `code` in a process of its own with Django set up on that node; its output.

    Raises AssertionError with its error output when it fails.
    """
    result = subprocess.run(**python(node, code, name, **options), capture_output=True, timeout=timeout, check=False)
    assert result.returncode == 0, f"status {result.returncode}\n{result.stderr}"
    return str(result.stdout)
