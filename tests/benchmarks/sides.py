"""What is compared, and on what: this ENGINE and Django's own on one LiteFS mount, with real nodes under it."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import django
from django.db import connections
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.utils import ConnectionHandler

from litefs_django._litefs import binary
from litefs_django._litefs.node_file import NodeFileWriter
from tests.cluster.connections import create_tables, open_connection
from tests.cluster.nodes import LiteFSNode, StaticCluster
from tests.machine import fuse_problem, litefs

OURS = "litefs_django"
STOCK = "Django's sqlite3"


def connect(node: LiteFSNode, side: str, alias: str, **options: Any) -> DatabaseWrapper:
    """A connection of one side to the node's database, known to the ORM by `alias` in this thread; not open yet."""
    if side == OURS:
        connection: DatabaseWrapper = open_connection(node, alias=alias, **options)
    else:
        configured = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(node.database()), "OPTIONS": options}
        connection = DatabaseWrapper(ConnectionHandler({"default": {}, alias: configured}).settings[alias], alias)
    # A connection of its own for each request would hide what a query costs.
    connection.settings_dict["CONN_MAX_AGE"] = None
    connections[alias] = connection
    return connection


class Cluster(StaticCluster):
    """A primary and a replica with the tables of `tests.cluster.models`, and node files as of a supervisor."""

    def __init__(self, directory: Path) -> None:
        super().__init__(2, directory, litefs())

    def start(self) -> None:
        super().start()
        self._node_files = [NodeFileWriter(node.run) for node in self.nodes]
        for file in self._node_files:
            file.mount_is_up()
        with closing(open_connection(self.primary)) as connection:
            create_tables(connection)

    def beat(self) -> None:
        """To be called more often than every second: a connection distrusts a supervisor that is silent."""
        for file in self._node_files:
            file.beat()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Raises SystemExit where no LiteFS can be mounted."""
    if problem := fuse_problem():
        raise SystemExit(problem)
    with tempfile.TemporaryDirectory(prefix="litefs-bench-") as directory, Cluster(Path(directory)) as started:
        yield started


def machine() -> dict[str, str]:
    """Where and with what the figures were measured."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown CPU")
    return {
        "machine": f"{os.cpu_count()} x {model}, Linux {platform.release()}",
        "python": platform.python_version(),
        "django": django.get_version(),
        "sqlite": sqlite3.sqlite_version,
        "litefs": binary.VERSION,
    }
