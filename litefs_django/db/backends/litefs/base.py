"""Django's SQLite backend on LiteFS's mount: reads everywhere, writes on the primary alone.

What guards a connection stands in `guard.py`; here is what Django must know of it. With
LITEFS["ENABLED"] False, and for in-memory databases, this is Django's own sqlite3 backend: nothing
that only Linux has is imported then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from django.db.backends import utils
from django.db.backends.sqlite3 import base
from django.db.utils import OperationalError

from litefs_django import conf
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django.db.backends.litefs.client import DatabaseClient
from litefs_django.db.backends.litefs.creation import DatabaseCreation
from litefs_django.db.backends.litefs.features import DatabaseFeatures

if TYPE_CHECKING:
    from litefs_django.db.backends.litefs.place import Place


class DatabaseWrapper(base.DatabaseWrapper):
    """One alias on LiteFS. `is_guarded` says whether this connection is on the mount at all."""

    transaction_mode: str | None

    client_class = DatabaseClient
    creation_class = DatabaseCreation
    features_class = DatabaseFeatures

    @property
    def is_guarded(self) -> bool:
        return conf.is_enabled() and not self.is_in_memory_db()

    def get_litefs_settings(self) -> LiteFSSettings:
        """The settings of the node whose mount this connection uses. Raises ImproperlyConfigured."""
        return conf.get_settings()

    @property
    def place(self) -> Place:
        """Where the database lies; only for a guarded connection."""
        from litefs_django.db.backends.litefs.opening import place_of

        return place_of(self.alias, self.settings_dict["NAME"], self.get_litefs_settings())

    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        if not self.is_guarded and not self.is_in_memory_db():
            params["database"] = conf.file_beside_project(params["database"])
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if self.is_guarded:
            from litefs_django.db.backends.litefs.opening import opening_parameters

            conn_params = conn_params | opening_parameters(self.place)
        return super().get_new_connection(conn_params)

    def create_cursor(self, name: str | None = None) -> Any:
        if not self.is_guarded:
            return super().create_cursor(name)
        from litefs_django.db.backends.litefs.cursor import GuardedCursor

        return self.connection.cursor(factory=GuardedCursor)

    def make_cursor(self, cursor: Any) -> utils.CursorWrapper:
        return CursorWrapper(cursor, self) if self.is_guarded else super().make_cursor(cursor)

    def make_debug_cursor(self, cursor: Any) -> utils.CursorDebugWrapper:
        return CursorDebugWrapper(cursor, self) if self.is_guarded else super().make_debug_cursor(cursor)

    def close_if_unusable_or_obsolete(self) -> None:
        super().close_if_unusable_or_obsolete()
        # Without a supervisor nobody says that LiteFS was restarted: look once per request.
        if self.connection is None or self.in_atomic_block or not self.is_guarded:
            return
        place = self.connection.place
        if place.node_file.generation() is None:
            try:
                is_same = os.stat(place.path).st_dev == self.connection.device
            except OSError:
                is_same = False
            if not is_same:
                self.close()

    def reopen(self) -> None:
        """Opens a new connection in place of one that LiteFS or the node's role has left behind.

        The old one serves its last readers, and is closed when it is garbage. If the new one cannot be opened the old one stays, so
        that autocommit keeps the state that the caller set.
        """
        old, autocommit = self.connection, self.autocommit
        try:
            with self.wrap_database_errors:
                self.connect()
        except BaseException:
            self.connection, self.autocommit = old, autocommit
            raise
        if not autocommit:
            self.set_autocommit(False)

    def can_reopen(self, error: OperationalError) -> bool:
        """Whether nothing was run and a new connection can run it.

        Not inside atomic(), where what came before it is lost.
        """
        from litefs_django.db.backends.litefs.place import Reopen

        return isinstance(error.__cause__, Reopen) and not self.in_atomic_block

    def _start_transaction_under_autocommit(self) -> None:
        if not self.is_guarded:
            super()._start_transaction_under_autocommit()  # type: ignore[misc]
            return
        self.ensure_connection()
        try:
            with self.wrap_database_errors:
                self.connection.agree_with_role()
        except OperationalError as error:
            if not self.can_reopen(error):
                raise
            self.reopen()
        # A transaction that reads first and writes then finds 'database is locked' more often than not.
        mode = self.transaction_mode or ("IMMEDIATE" if self.connection.is_writable else None)
        self.cursor().execute(f"BEGIN {mode}" if mode else "BEGIN")

    def _rollback(self) -> None:
        if self.is_guarded and self.connection.is_left_behind():
            # ROLLBACK on the connection of a LiteFS that has ended hangs for ten seconds.
            self.connection.end_turn()
            self.reopen()
        else:
            super()._rollback()  # type: ignore[misc]


class _Reopening:
    """Runs a statement on a new connection when it finds itself on one of before."""

    db: DatabaseWrapper
    cursor: Any

    def _execute(self, *args: Any) -> Any:
        try:
            return super()._execute(*args)  # type: ignore[misc]
        except OperationalError as error:
            if not self.db.can_reopen(error):
                raise
        self._renew()
        return super()._execute(*args)  # type: ignore[misc]

    def _executemany(self, sql: str, param_list: Iterable[Any], *args: Any) -> Any:
        rows = _Rows(param_list)
        try:
            return super()._executemany(sql, rows, *args)  # type: ignore[misc]
        except OperationalError as error:
            # Of several rows all but the last are committed.
            if not self.db.can_reopen(error) or len(rows.taken) > 1:
                raise
        self._renew()
        return super()._executemany(sql, chain(rows.taken, rows), *args)  # type: ignore[misc]

    def _renew(self) -> None:
        self.db.reopen()
        self.cursor = self.db.create_cursor()


class _Rows:
    """executemany's rows; of those that were taken it keeps the first two."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self.taken: list[Any] = []
        self._rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = next(self._rows)
        if len(self.taken) < 2:
            self.taken.append(row)
        return row


class CursorWrapper(_Reopening, utils.CursorWrapper):
    """Django's cursor."""


class CursorDebugWrapper(_Reopening, utils.CursorDebugWrapper):
    """Django's cursor that logs what it runs."""
