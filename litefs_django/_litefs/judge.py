"""Does this SQL write? A misjudgement costs a write turn, never the guard.

By the first keyword where that decides; a PRAGMA by SQLite's own parser; the rest (`None`) is for the
caller to settle with EXPLAIN (`explains_write`), which must never be given a PRAGMA: it would run it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any


class Kind(Enum):
    """What a statement does, as far as turn and gate are concerned."""

    READ = "read"
    WRITE = "write"
    # The statements before which Python's sqlite3 begins a transaction under AUTOCOMMIT=False.
    DML = "dml"
    BEGIN = "begin"
    BEGIN_WRITE = "begin write"
    SAVEPOINT = "savepoint"
    # It commits when it ends the savepoint that began the transaction.
    RELEASE = "release"
    COMMIT = "commit"
    # ROLLBACK TO too, after which the transaction goes on.
    ROLLBACK = "rollback"
    PRAGMA = "pragma"
    ATTACH = "attach"
    VACUUM_INTO = "vacuum into"


# What SQLite passes over before and between words; empty statements and byte order marks, too.
_SKIPPED = r"(?:[\s;\ufeff]|--[^\n]*+|/\*.*?(?:\*/|\Z))*+"
_NOTHING = re.compile(_SKIPPED, re.DOTALL)
_FIRST_WORDS = re.compile(f"{_SKIPPED}([A-Za-z]+)(?:{_SKIPPED}([A-Za-z]+))?", re.DOTALL)
_ATTACH_PARAMETER = re.compile(r"ATTACH\s+(?:DATABASE\s+)?[?:@$]\w*\s+(?:AS\s+)?\S+\s*;?\s*\Z", re.IGNORECASE)
_NAME = r"""(?:\w+|"[^"]*"|'[^']*'|`[^`]*`|\[[^\]]*\])"""
_VACUUM_INTO = re.compile(f"VACUUM{_SKIPPED}(?:{_NAME}{_SKIPPED})?INTO\\b", re.IGNORECASE | re.DOTALL)

_KINDS = {
    "SELECT": Kind.READ,
    "VALUES": Kind.READ,
    "ATTACH": Kind.ATTACH,
    "DETACH": Kind.READ,
    "INSERT": Kind.DML,
    "UPDATE": Kind.DML,
    "DELETE": Kind.DML,
    "REPLACE": Kind.DML,
    "CREATE": Kind.WRITE,
    "DROP": Kind.WRITE,
    "ALTER": Kind.WRITE,
    "REINDEX": Kind.WRITE,
    "ANALYZE": Kind.WRITE,
    "VACUUM": Kind.WRITE,
    "BEGIN": Kind.BEGIN,
    "COMMIT": Kind.COMMIT,
    "END": Kind.COMMIT,
    "SAVEPOINT": Kind.SAVEPOINT,
    "RELEASE": Kind.RELEASE,
    "ROLLBACK": Kind.ROLLBACK,
    "PRAGMA": Kind.PRAGMA,
    # EXPLAIN PRAGMA runs the PRAGMA.
    "EXPLAIN": Kind.PRAGMA,
}

# PRAGMAs that write into the database, and those that do only when they are given a value.
_WRITING = {"incremental_vacuum", "optimize", "wal_checkpoint"}
_WRITING_WITH_VALUE = {
    "application_id",
    "auto_vacuum",
    "default_cache_size",
    "encoding",
    "schema_version",
    "user_version",
}

# What LiteFS cannot carry: replicas die of a journal_mode that leaves WAL, a primary of another page
# size, and under locking_mode=EXCLUSIVE writes fail.
UNSAFE_PRAGMAS = {"journal_mode", "page_size", "locking_mode"}


@dataclass(frozen=True, slots=True)
class Pragma:
    """A PRAGMA as SQLite reads it. `schema` is None when the statement names none."""

    name: str
    value: str | None
    schema: str | None

    @property
    def is_unsafe(self) -> bool:
        """Whether it sets what must not change under LiteFS."""
        return self.name in UNSAFE_PRAGMAS and self.value is not None

    @property
    def writes(self) -> bool:
        """Whether it writes into the database."""
        return self.name in _WRITING or (self.name in _WRITING_WITH_VALUE and self.value is not None)


def judge(sql: str) -> Kind | None:
    """The kind of a statement by its first words; None when they do not tell."""
    match = _FIRST_WORDS.match(sql)
    if match is None:
        return None
    keyword = match[1].upper()
    kind = _KINDS.get(keyword)
    if kind is Kind.BEGIN and (match[2] or "").upper() in ("IMMEDIATE", "EXCLUSIVE"):
        return Kind.BEGIN_WRITE
    if keyword == "VACUUM" and _VACUUM_INTO.match(sql, match.start(1)):
        return Kind.VACUUM_INTO
    return kind


def is_empty(sql: str) -> bool:
    """Whether there is nothing to run: white space, comments and semicolons."""
    return bool(_NOTHING.fullmatch(sql))


@lru_cache(maxsize=256)
def parse_pragma(sql: str) -> Pragma | None:
    """The PRAGMA that this PRAGMA or EXPLAIN statement runs; None when it runs none.

    SQLite itself parses it, on an empty database of its own with an authorizer that forbids to run it
    (sqlite3_set_authorizer: SQLITE_PRAGMA is given the name and the argument).
    """
    found: list[Pragma] = []

    def authorize(action: int, name: str | None, value: str | None, schema: str | None, _: str | None) -> int:
        if action != sqlite3.SQLITE_PRAGMA or name is None:
            return sqlite3.SQLITE_OK
        found.append(Pragma(name.lower(), value, schema))
        return sqlite3.SQLITE_DENY

    with closing(sqlite3.connect(":memory:")) as scratch, suppress(sqlite3.Error):
        try:
            scratch.set_authorizer(authorize)
            scratch.execute(sql)
        except sqlite3.OperationalError as error:
            # A PRAGMA of an attached database: the name is quoted as in the statement.
            scratch.set_authorizer(None)
            scratch.execute(f"ATTACH ':memory:' AS {str(error).removeprefix('unknown database ')}")
            scratch.set_authorizer(authorize)
            scratch.execute(sql)
    return found[0] if found else None


def attached_file(sql: str, parameters: Any) -> str | None:
    """The file that this ATTACH opens; None when it is an expression. SQLite itself parses it, as in `parse_pragma`."""
    found: list[str | None] = []

    def authorize(action: int, file: str | None, *_: str | None) -> int:
        if action != sqlite3.SQLITE_ATTACH:
            return sqlite3.SQLITE_OK
        found.append(file)
        return sqlite3.SQLITE_DENY

    with closing(sqlite3.connect(":memory:")) as scratch, suppress(sqlite3.Error):
        scratch.set_authorizer(authorize)
        scratch.execute(sql, parameters)
    if found and found[0] is None and _ATTACH_PARAMETER.search(sql):
        values = list(parameters.values() if isinstance(parameters, Mapping) else parameters)
        return str(values[0]) if len(values) == 1 else None
    return found[0] if found else None


def vacuum_target(sql: str, parameters: Any) -> str | None:
    """The file that this VACUUM INTO writes, as SQLite computes it; None when that cannot be told."""
    match = _VACUUM_INTO.search(sql)
    with closing(sqlite3.connect(":memory:")) as scratch, suppress(sqlite3.Error):
        (target,) = scratch.execute(f"SELECT {sql[match.end() :] if match else ''}", parameters).fetchone()
        return str(target)
    return None


def explains_write(rows: Iterable[tuple[object, ...]]) -> bool:
    """Whether EXPLAIN's rows open a write transaction: Transaction, its P2 not 0 (sqlite.org/opcode.html)."""
    return any(row[1] == "Transaction" and row[3] != 0 for row in rows)
