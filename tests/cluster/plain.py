"""Plain SQLite files, as a project without LiteFS has them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.cluster.nodes import DATABASE, LiteFSNode


def make_file(path: Path, *names: str, size: int = 0, before: str = "", after: str = "") -> Path:
    """A database whose table `t` has these names and, besides, `size` bytes or a little more.

    `before` and `after` are SQL for before the table is made and for when it is filled; they may use REGEXP.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_function("REGEXP", 2, lambda pattern, text: 1, deterministic=True)
        connection.executescript(before)
        connection.executescript("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, filler BLOB)")
        connection.executescript("CREATE INDEX t_name ON t (name)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO t (name) VALUES (?)", ((name,) for name in names))
        connection.executemany("INSERT INTO t (filler) VALUES (randomblob(?))", [(8000,)] * (size // 8000))
        connection.execute("COMMIT")
        connection.executescript(after)
    return path


def names_in(path: Path) -> list[str]:
    """The names in a database's table `t`, which is sound."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [name for (name,) in connection.execute("SELECT name FROM t WHERE name IS NOT NULL ORDER BY id")]


def names_on(node: LiteFSNode, name: str = DATABASE) -> list[str]:
    return names_in(node.database(name))


def write(node: LiteFSNode, sql: str, name: str = DATABASE) -> None:
    """Runs a statement on the node's mount, as any program without the backend would."""
    with closing(sqlite3.connect(node.database(name), isolation_level=None, timeout=20)) as connection:
        connection.execute(sql)


# Inserts names into `t` through the backend until it is killed; says each that was acknowledged.
WRITER = """
import itertools, os, time
from django.db import DatabaseError, connection
for count in itertools.count():
    name = f"{os.getpid()}-{count}"
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO t (name) VALUES (%s)", [name])
    except DatabaseError as error:
        os.write(1, f"failed {type(error).__name__}: {error}\\n".encode())
        time.sleep(0.05)
    else:
        os.write(1, f"wrote {name}\\n".encode())
"""
