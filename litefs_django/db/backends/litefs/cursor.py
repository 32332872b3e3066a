"""A guarded connection's cursors."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

from litefs_django._litefs.judge import Kind

if TYPE_CHECKING:
    from litefs_django.db.backends.litefs.guard import Connection


class Cursor(sqlite3.Cursor):
    """What `connection.connection.cursor()` gives: sqlite3's cursor, guarded."""

    connection: Connection

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        connection = self.connection
        connection.check_alive()
        if self.__dict__:
            self.__dict__.clear()
        kind = connection.kind_of(sql, parameters)
        execute = super().execute
        if kind is Kind.READ:
            return execute(sql, parameters)

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
        kind = connection.kind_of(sql, ())
        if kind not in (Kind.DML, Kind.WRITE):
            # sqlite3 lets BEGIN, COMMIT and half of the PRAGMAs through.
            raise sqlite3.ProgrammingError("executemany() can only execute DML statements.")
        execute = super().executemany
        if not connection.is_writable or connection.in_transaction or connection.isolation_level is not None:
            return connection.run(kind, lambda: execute(sql, parameters))
        try:
            return execute(sql, connection.each_alone(parameters))
        except sqlite3.Error as error:
            explained = connection.explained(error, at_commit=True)
            if explained is error:
                raise
            raise explained from error

    def executescript(self, script: str, /) -> Cursor:
        connection = self.connection
        if connection.in_transaction:
            connection.commit()
        isolation_level, connection.isolation_level = connection.isolation_level, None
        try:
            for statement in _statements(script):
                Cursor.execute(self, statement)
                self.fetchall()
        finally:
            connection.isolation_level = isolation_level
        return self

    def __next__(self) -> Any:
        rows = self.__dict__.get("_rows")
        return super().__next__() if rows is None else next(rows)

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


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, each with its semicolon."""
    begin = 0
    for semicolon in re.finditer(";", script):
        statement = script[begin : semicolon.end()]
        if sqlite3.complete_statement(statement):
            yield statement
            begin = semicolon.end()
    if script[begin:].strip():
        yield script[begin:]
