"""What a statement does, on the connection that is to run it; what LiteFS cannot carry is refused here."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from litefs_django._litefs.judge import Kind, Pragma, attached_file, explains_write, judge, parse_pragma, vacuum_target
from litefs_django.db.backends.litefs.mounted import MountedConnection


def kind_of(connection: MountedConnection, sql: str, parameters: Any) -> Kind:
    """What the statement does. Raises NotSupportedError for what LiteFS cannot carry, on whichever node."""
    kind = judge(sql)
    mount_path = connection.place.settings.mount_path
    if kind is Kind.PRAGMA:
        pragma = parse_pragma(sql)
        if pragma is None:
            return Kind.READ
        if pragma.is_unsafe:
            _check_pragma(pragma, _current(connection, pragma))
        return Kind.WRITE if pragma.writes else Kind.READ
    if kind is Kind.ATTACH:
        _check_attached(attached_file(sql, parameters), mount_path)
        return Kind.READ
    if kind is Kind.VACUUM_INTO:
        _check_vacuum_target(vacuum_target(sql, parameters), mount_path)
        return Kind.READ
    if kind is None:
        # SQLite decides by itself on a replica's connection.
        return Kind.WRITE if not connection.is_writable or _explains_write(connection, sql, parameters) else Kind.READ
    return kind


def _current(connection: MountedConnection, pragma: Pragma) -> object:
    schema = f'"{pragma.schema}".' if pragma.schema else ""
    (current,) = sqlite3.Cursor(connection).execute(f"PRAGMA {schema}{pragma.name}").fetchone()
    return current


_explained: dict[str, bool] = {}


def _explains_write(connection: MountedConnection, sql: str, parameters: Any) -> bool:
    known = _explained.get(sql)
    if known is None:
        try:
            known = explains_write(sqlite3.Cursor(connection).execute(f"EXPLAIN {sql}", parameters))
        except sqlite3.Error:
            # The statement itself will say what is wrong with it.
            return True
        if len(_explained) >= 1000:
            _explained.clear()
        _explained[sql] = known
    return known


def _check_pragma(pragma: Pragma, current: object) -> None:
    """A PRAGMA that sets what must not change, where it is `current`; setting that again is fine."""
    if str(current).lower() == str(pragma.value).lower():
        return
    if pragma.name == "journal_mode" and str(current).lower() != "wal":
        why = "and this database works as it is: leave the PRAGMA out (of OPTIONS['init_command'], maybe)."
    else:
        why = "and LiteFS loses replicas or the database itself when that changes."
    raise sqlite3.NotSupportedError(f"PRAGMA {pragma.name} = {pragma.value} is refused: it is {current!r}, {why}")


def _check_attached(file: str | None, mount_path: Path) -> None:
    """SQLite opens what it attaches with leave to write and to make a file: not on the mount, nor where it was."""
    is_suspect = file is None or _lies_in(mount_path, file)
    if is_suspect and parse_qs(urlsplit(file or "").query).get("mode", [""])[-1] != "ro":
        raise sqlite3.NotSupportedError(
            f"ATTACH of {file or 'an expression'!r} is refused: a database of {mount_path} is attached read-only, "
            f"as 'file:{mount_path}/NAME?mode=ro'. To write to it, give it an alias in DATABASES."
        )


def _check_vacuum_target(file: str | None, mount_path: Path) -> None:
    """VACUUM INTO makes a file, and writes it."""
    if file is None or _lies_in(mount_path, file):
        raise sqlite3.NotSupportedError(
            f"VACUUM INTO {file or 'an expression'!r} is refused: a copy is not made on {mount_path}, but beside it."
        )


def _lies_in(directory: Path, file: str) -> bool:
    uri = urlsplit(file)
    path = Path(unquote(uri.path) if uri.scheme == "file" else file)
    return path.resolve().is_relative_to(directory.resolve())
