"""What LiteFS cannot carry, on whichever node: refused with NotSupportedError before SQLite sees it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from litefs_django._litefs.judge import Pragma


def check_pragma(pragma: Pragma, current: object) -> None:
    """A PRAGMA that sets what must not change, where it is `current`; setting that again is fine."""
    if str(current).lower() == str(pragma.value).lower():
        return
    if pragma.name == "journal_mode" and str(current).lower() != "wal":
        why = "and this database works as it is: leave the PRAGMA out (of OPTIONS['init_command'], maybe)."
    else:
        why = "and LiteFS loses replicas or the database itself when that changes."
    raise sqlite3.NotSupportedError(f"PRAGMA {pragma.name} = {pragma.value} is refused: it is {current!r}, {why}")


def check_attached(file: str | None, mount_path: Path) -> None:
    """SQLite opens what it attaches with leave to write and to make a file: not on the mount, nor where it was."""
    is_suspect = file is None or _lies_in(mount_path, file)
    if is_suspect and parse_qs(urlsplit(file or "").query).get("mode", [""])[-1] != "ro":
        raise sqlite3.NotSupportedError(
            f"ATTACH of {file or 'an expression'!r} is refused: a database of {mount_path} is attached read-only, "
            f"as 'file:{mount_path}/NAME?mode=ro'. To write to it, give it an alias in DATABASES."
        )


def check_vacuum_target(file: str | None, mount_path: Path) -> None:
    """VACUUM INTO makes a file, and writes it."""
    if file is None or _lies_in(mount_path, file):
        raise sqlite3.NotSupportedError(
            f"VACUUM INTO {file or 'an expression'!r} is refused: a copy is not made on {mount_path}, but beside it."
        )


def _lies_in(directory: Path, file: str) -> bool:
    uri = urlsplit(file)
    path = Path(unquote(uri.path) if uri.scheme == "file" else file)
    return path.resolve().is_relative_to(directory.resolve())
