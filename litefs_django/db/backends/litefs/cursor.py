"""A guarded connection's cursors."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

from litefs_django._litefs.judge import Kind, is_empty
from litefs_django.db.backends.litefs.statements import kind_of
from litefs_django.exceptions import NotPrimaryError

if TYPE_CHECKING:
    from litefs_django.db.backends.litefs.guard import Connection

_create_cursor: Any = sqlite3.Connection.cursor


class Cursor(sqlite3.Cursor):
    """What `connection.connection.cursor()` gives: sqlite3's cursor, guarded."""

    connection: Connection
    _rows: Iterator[Any] | None = None
    _changed: int | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        connection = self.connection
        # Reading pays for what stands here: a call is half a microsecond.
        if connection.is_obsolete or connection.generation != connection.node_file.generation():
            connection.check_alive()
        if self._rows is not None or self._changed is not None:
            self.__dict__.clear()
        kind = Kind.READ if sql.startswith("SELECT ") else kind_of(connection, sql, parameters)
        execute = super().execute
        if kind is Kind.READ:
            try:
                return execute(sql, parameters)
            except sqlite3.OperationalError as error:
                # Where no supervisor says that LiteFS has ended, this one hung; the next one will not.
                connection.check_gone(error)
                raise

        def statement() -> None:
            execute(sql, parameters)
            # RETURNING commits with its last row: it is fetched where the commit is guarded.
            if not connection.in_transaction and self.description is not None:
                self._serve(super(Cursor, self).fetchall())

        connection.run(kind, statement)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        connection = self.connection
        connection.check_alive()
        kind = kind_of(connection, sql, ())
        if kind not in (Kind.DML, Kind.WRITE):
            # sqlite3 lets BEGIN, COMMIT and half of the PRAGMAs through.
            raise sqlite3.ProgrammingError("executemany() can only execute DML statements.")
        begins = kind is Kind.DML and connection.isolation_level is not None
        if not connection.is_writable or connection.in_transaction or begins:
            execute = super().executemany
            return connection.run(kind, lambda: execute(sql, parameters))
        return self._execute_each(sql, parameters)

    def _execute_each(self, sql: str, parameters: Iterable[Any]) -> Cursor:
        """executemany in autocommit: each row is a transaction, and nothing is held while the iterator works."""
        changed = 0
        for done, row in enumerate(parameters):
            try:
                Cursor.execute(self, sql, row)
            except (sqlite3.OperationalError, NotPrimaryError) as error:
                if not done:
                    raise
                raise sqlite3.OperationalError(f"The first {done} rows are committed, then: {error}") from error
            changed += max(self.rowcount, 0)
        self.__dict__.clear()
        self._changed = changed
        return self

    @property
    def rowcount(self) -> int:
        """As sqlite3's; after executemany() of all rows together."""
        return super().rowcount if self._changed is None else self._changed

    def has_changed_nothing(self) -> None:
        """Lets it look as after a statement that found no row."""
        self._changed = 0

    def executescript(self, script: str, /) -> Cursor:
        connection = self.connection
        if connection.in_transaction:
            connection.commit()
        isolation_level = connection.isolation_level
        if isolation_level is not None:
            connection.isolation_level = None
        try:
            for statement in _statements(script):
                Cursor.execute(self, statement)
                self.fetchall()
        finally:
            # None commits, and what the script has begun is the caller's.
            if isolation_level is not None:
                connection.isolation_level = isolation_level
        return self

    def __next__(self) -> Any:
        if self._rows is not None:
            return next(self._rows)
        try:
            return super().__next__()
        except sqlite3.OperationalError as error:
            self.connection.check_gone(error)
            raise

    def _serve(self, fetched: list[Any]) -> None:
        """Lets the rows that have been fetched already be fetched once more."""
        rows = iter(fetched)
        self.__dict__.update(
            _rows=rows,
            fetchone=lambda: next(rows, None),
            fetchmany=lambda size=self.arraysize: list(islice(rows, size)),
            fetchall=lambda: list(rows),
        )


class GuardedCursor(SQLiteCursorWrapper, Cursor):  # type: ignore[misc]
    """Django's: turns %s into ? (SQLiteCursorWrapper), then runs it guarded (Cursor)."""


def create_guarded_cursor(connection: Connection) -> GuardedCursor:
    """What Django uses."""
    cursor: GuardedCursor = _create_cursor(connection, GuardedCursor)
    return cursor


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, each with its semicolon."""
    begin = 0
    for semicolon in re.finditer(";", script):
        statement = script[begin : semicolon.end()]
        if sqlite3.complete_statement(statement):
            if not is_empty(statement):
                yield statement
            begin = semicolon.end()
    if not is_empty(script[begin:]):
        yield script[begin:]
