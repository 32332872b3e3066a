"""Whole databases, copied from the mount and checked: what litefs_export and litefs_import have in common.

Both go through SQLite's backup API and not through LiteFS's HTTP API, as measured on LiteFS v0.5.14:

- GET /export does not say which position it holds; an error in mid-stream becomes text in a body of status 200. It
  needs read locks throughout, as SQLite does: on a replica nothing is applied meanwhile, 0.5 s for 200 MB either way.
- POST /import of a file with another page size ends the primary's LiteFS for good; of one that is not in WAL mode, each
  replica's at the next write. It waits for a moment without any reader, goes on to wait after its caller has given
  up, and truncates the WAL before it has read the new content. A backup into an open connection is one transaction:
  readers go on and see the old or the new content, and one that is cut short leaves nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.utils import ConnectionHandler, DatabaseError

from litefs_django import conf
from litefs_django._litefs.errors import LiteFSError, SettingsError
from litefs_django._litefs.mount import Position
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from litefs_django.exceptions import CommitOutcomeUnknown
from litefs_django.management.in_use import require_litefs
from litefs_django.management.progress import Progress

CHUNK = 4096  # pages between two steps of the progress


class CopyError(Exception):
    """A database cannot be copied, or is not sound."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A connection that goes on seeing the database as it was at one position."""

    connection: sqlite3.Connection
    position: Position


def find_database(name: str) -> DatabaseWrapper:
    """The connection of this alias, or of the alias whose file has this name. Raises CommandError."""
    require_litefs()
    try:
        databases = conf.read().databases
    except SettingsError as error:
        raise CommandError(str(error)) from error
    aliases = {database.name: database.alias for database in databases}
    aliases |= {database.alias: database.alias for database in databases}
    if name not in aliases:
        known = ", ".join(f"{database.alias} ({database.name})" for database in databases)
        raise CommandError(f"{name!r} is no database on LiteFS. There are: {known or 'none'}.")
    return cast(DatabaseWrapper, connections[aliases[name]])


@contextmanager
def explaining(unchanged: str) -> Iterator[None]:
    """Raises CommandError for what can go wrong, which ends with `unchanged`: what is still as it was."""
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError(f"Interrupted. {unchanged}", returncode=130) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CommandError(f"{where}{error.strerror or error}. {unchanged}") from error
    except CommitOutcomeUnknown as error:
        raise CommandError(str(error)) from error
    except (CopyError, LiteFSError, DatabaseError, sqlite3.Error) as error:
        said = str(error)
        raise CommandError(f"{said}{'' if said.endswith('.') else '.'} {unchanged}") from error


@contextmanager
def snapshot(database: DatabaseWrapper) -> Iterator[Snapshot]:
    """The database as it is now. The position is exact while nobody commits: on a replica, or in `no_commits`.

    On a replica LiteFS applies nothing in the block; on the primary writers go on.
    """
    reader = database.copy()
    try:
        reader.ensure_connection()
        reader.connection.execute("BEGIN")
        reader.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        position = database.place.detector.position(database.place.path.name)
        if position is None:
            raise CopyError(f"{database.place.path} has been removed meanwhile.")
        yield Snapshot(reader.connection, position)
    finally:
        reader.close()


@contextmanager
def no_commits(database: DatabaseWrapper) -> Iterator[None]:
    """Holds the primary's writers off; on a replica, where nobody commits, this only reads."""
    with database.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            cursor.execute("ROLLBACK")


def copy(source: sqlite3.Connection, path: Path, progress: Progress, what: str) -> None:
    """Copies a database, page by page, into the empty file `path`, which then needs no other file beside it."""
    with closing(open_plainly(path)) as target:
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")
        backup(source, target, progress, what)
    with path.open("r+b") as file:
        # Not in WAL mode (https://sqlite.org/fileformat2.html, 1.3.3): reading it then makes no files beside it.
        file.seek(18)
        file.write(b"\x01\x01")


def backup(source: sqlite3.Connection, target: sqlite3.Connection, progress: Progress, what: str) -> None:
    """SQLite's backup. It commits in its last step, which cannot be interrupted."""

    def step(status: int, left: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            # It has waited for as long as the connection's time-out, and would begin to wait again.
            raise CopyError("The database is locked.")
        progress.step(what, total - left, total)

    source.backup(target, pages=CHUNK, progress=step)


def warm(path: Path, progress: Progress) -> None:
    """Brings a file of the mount into the kernel's cache.

    What is not there comes at 50 MB/s, and a replica stands still while it is copied; what is there at 500.
    """
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        done = 0
        while read := len(file.read(1 << 20)):
            done = min(done + read, total)
            progress.step("Reading", done, total)


def open_plainly(path: Path, parameters: str = "") -> sqlite3.Connection:
    """A connection to a file outside of the mount, with Django's SQL functions, which indexes and checks may use."""
    name = f"file:{quote(str(path))}?{parameters}"
    handler = ConnectionHandler({DEFAULT_DB_ALIAS: {"ENGINE": "django.db.backends.sqlite3", "NAME": name}})
    database: Any = handler[DEFAULT_DB_ALIAS]
    # Not `connect()`, whose signal projects answer with PRAGMAs that change the file.
    connection: sqlite3.Connection = database.get_new_connection(database.get_connection_params())
    connection.isolation_level = None
    return connection


def check(connection: sqlite3.Connection, what: str) -> None:
    """Raises CopyError unless SQLite finds the database sound."""
    found = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        raise CopyError(f"{what} is damaged; SQLite finds: {'; '.join(found)}.")


def count_rows(connection: sqlite3.Connection) -> dict[str, int]:
    """The number of rows of each table; those of SQLite and of its extensions are left out."""
    tables = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
        "AND sql NOT LIKE 'CREATE VIRTUAL%'"
    ).fetchall()
    counts = {}
    for (table,) in tables:
        quoted = '"' + table.replace('"', '""') + '"'
        (counts[table],) = connection.execute(f"SELECT count(*) FROM {quoted}").fetchone()
    return counts


def in_words(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"


def is_confirmed(question: str) -> bool:
    """Whether somebody is there to answer, and says yes."""
    try:
        return input(f"{question}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
