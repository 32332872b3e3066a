"""Django's SQLite backend on LiteFS's mount: reads everywhere, writes on the primary alone.

What guards a connection stands in `guard.py`; here is what Django must know of it. With
LITEFS["ENABLED"] False, and for in-memory databases, this is Django's own sqlite3 backend: nothing
that only Linux has is imported then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends import utils
from django.db.backends.sqlite3 import base
from django.db.utils import DatabaseErrorWrapper, OperationalError
from django.utils.functional import cached_property

from litefs_django import conf
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django.db.backends.litefs.client import DatabaseClient
from litefs_django.db.backends.litefs.creation import DatabaseCreation
from litefs_django.db.backends.litefs.features import DatabaseFeatures
from litefs_django.db.backends.litefs.operations import DatabaseOperations
from litefs_django.exceptions import HandOver, NotPrimaryError
from litefs_django.handover import cache_table, note

if TYPE_CHECKING:
    from litefs_django.db.backends.litefs.place import Place


class DatabaseWrapper(base.DatabaseWrapper):
    """One alias on LiteFS. `is_guarded` says whether this connection is on the mount at all."""

    transaction_mode: str | None
    _create_cursor: Callable[[Any], Any] | None = None

    client_class = DatabaseClient
    creation_class = DatabaseCreation
    features_class = DatabaseFeatures
    ops_class = DatabaseOperations

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

    @cached_property
    def wrap_database_errors(self) -> DatabaseErrorWrapper:
        if not self.is_guarded:
            return DatabaseErrorWrapper(self)
        from litefs_django.db.backends.litefs.wrapping import GuardedErrorWrapper

        return GuardedErrorWrapper(self)

    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        if self.is_guarded and (refused := {"autocommit", "factory"} & params.keys()):
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS'] may not hold {sorted(refused)} with this ENGINE: what it guards "
                "would be open. Use Django's AUTOCOMMIT, and the connection_created signal."
            )
        if not self.is_guarded and not self.is_in_memory_db():
            params["database"] = conf.file_beside_project(params["database"])
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if self.is_guarded:
            from litefs_django.db.backends.litefs.cursor import create_guarded_cursor
            from litefs_django.db.backends.litefs.opening import opening_parameters

            conn_params = conn_params | opening_parameters(self.place)
            self._create_cursor = create_guarded_cursor
        return super().get_new_connection(conn_params)

    def create_cursor(self, name: str | None = None) -> Any:
        # On the way of each query: what the connection is was found when it was opened.
        return super().create_cursor(name) if self._create_cursor is None else self._create_cursor(self.connection)

    def make_cursor(self, cursor: Any) -> utils.CursorWrapper:
        return CursorWrapper(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> utils.CursorDebugWrapper:
        return CursorDebugWrapper(cursor, self)

    def close_if_unusable_or_obsolete(self) -> None:
        connection = self.connection
        if connection is not None and self.is_guarded and not self.in_atomic_block and connection.has_lost_its_mount():
            self.close()
        try:
            super().close_if_unusable_or_obsolete()
        except OperationalError:
            # It asks for the autocommit mode, and LiteFS has ended since.
            self.close()

    def reopen(self) -> None:
        """Opens a new connection in place of one that LiteFS or the node's role has left behind.

        The old one serves its last readers, and is closed when it is garbage. If the new one cannot be
        opened the old one stays, so that autocommit keeps the state that the caller set.
        """
        old, autocommit = self.connection, self.autocommit
        try:
            with self.wrap_database_errors:
                self.connect()
        except BaseException:
            self.connection, self.autocommit = old, autocommit
            raise
        if self.autocommit != autocommit:
            self.set_autocommit(autocommit)
        # What it had begun cannot be committed any more.
        old.end_turn()

    def _commit(self) -> None:
        try:
            super()._commit()  # type: ignore[misc]
        except NotPrimaryError as error:
            raise note.refuse(error) from error.__cause__
        except HandOver:
            # Of Django's own errors Atomic would roll back here.
            self._rollback()
            raise

    def on_commit(self, func: Callable[[], object], robust: bool = False) -> None:
        request = note.current()
        if request is None or self.in_atomic_block or not self.get_autocommit() or not self._is_on_replica():
            super().on_commit(func, robust)
        else:
            request.defer(lambda: super(DatabaseWrapper, self).on_commit(func, robust))

    def run_and_clear_commit_hooks(self) -> None:
        request = note.current()
        if request is None or not self.run_on_commit or not self._is_on_replica():
            super().run_and_clear_commit_hooks()
            return
        # A request that is still handed over does on the primary what it did here, these included.
        hooks, self.run_on_commit = self.run_on_commit, []
        request.defer(lambda: self._run_deferred(hooks))

    def _run_deferred(self, hooks: list[Any]) -> None:
        self.run_on_commit = hooks
        super().run_and_clear_commit_hooks()

    def _is_on_replica(self) -> bool:
        return self.is_guarded and self.connection is not None and not self.connection.is_writable

    def is_left_behind_by(self, error: OperationalError) -> bool:
        """Whether the error says that nothing was run, and that a new connection can run it."""
        if not self.is_guarded:
            return False
        from litefs_django.db.backends.litefs.place import Reopen

        return isinstance(error.__cause__, Reopen)

    def get_autocommit(self) -> bool:
        # atomic() asks before it begins; inside it nothing can be reopened any more.
        connection = self.connection
        may_reopen = connection is not None and self.is_guarded and not self.in_atomic_block
        if may_reopen and not connection.in_transaction and connection.is_left_behind():
            self.reopen()
        autocommit: bool = super().get_autocommit()
        return autocommit

    def _start_transaction_under_autocommit(self) -> None:
        if not self.is_guarded:
            super()._start_transaction_under_autocommit()  # type: ignore[misc]
            return
        self.ensure_connection()
        try:
            with self.wrap_database_errors:
                self.connection.agree_with_role()
        except OperationalError as error:
            if not self.is_left_behind_by(error):
                raise
            self.reopen()
        mode = self.transaction_mode
        if not mode and self.connection.is_writable and not self._begins_reading_view():
            # A transaction that reads first and writes then finds 'database is locked' more often than not.
            mode = "IMMEDIATE"
        self.cursor().execute(f"BEGIN {mode}" if mode else "BEGIN")

    def _begins_reading_view(self) -> bool:
        return bool(self.settings_dict["ATOMIC_REQUESTS"]) and note.begins_view(self.alias)

    def _rollback(self) -> None:
        connection = self.connection
        if not self.is_guarded or connection is None or not connection.is_left_behind():
            # Atomic knows what to do with a rollback that fails.
            with note.handling():
                super()._rollback()  # type: ignore[misc]
            return
        # ROLLBACK on the connection of a LiteFS that has ended hangs for ten seconds.
        connection.end_turn()
        if connection.isolation_level is not None:
            self.reopen()
        else:
            # As if closed inside atomic(), which then opens none to end with: where none can be opened, that error
            # would take the place of the one that ended the block.
            self.connection, self.closed_in_transaction = None, True


class _Reopening:
    """Runs a statement on a new connection when it finds itself on one of before."""

    db: DatabaseWrapper
    cursor: Any

    def _execute(self, *args: Any) -> Any:
        try:
            return super()._execute(*args)  # type: ignore[misc]
        except OperationalError as error:
            if not self._renew(error):
                return self._refused(error, args[0])
        try:
            return super()._execute(*args)  # type: ignore[misc]
        except NotPrimaryError as error:
            return self._refused(error, args[0])

    def _executemany(self, sql: str, param_list: Iterable[Any], *args: Any) -> Any:
        rows = _Rows(param_list)
        try:
            return super()._executemany(sql, rows, *args)  # type: ignore[misc]
        except OperationalError as error:
            # Of several rows all but the last are committed.
            if len(rows.taken) > 1 or not self._renew(error):
                return self._refused(error, sql)
        try:
            return super()._executemany(sql, chain(rows.taken, rows), *args)  # type: ignore[misc]
        except NotPrimaryError as error:
            return self._refused(error, sql)

    def _refused(self, error: OperationalError, sql: str) -> None:
        """Raises what the statement ends in; returns for one that may be left undone."""
        if self.db.is_left_behind_by(error):
            raise note.refuse(error) from error.__cause__
        if not isinstance(error, NotPrimaryError):
            is_stale = getattr(error.__cause__, "sqlite_errorname", None) == "SQLITE_BUSY_SNAPSHOT"
            raise note.stale(self.db.alias, error) if is_stale else error
        if not cache_table.is_written_by(sql):
            raise note.refuse(error) from error.__cause__
        if not cache_table.may_be_left_undone(sql):
            raise error
        self.cursor.has_changed_nothing()

    def _renew(self, error: OperationalError) -> bool:
        """Whether there is a cursor now that can run what was not run."""
        if not self.db.is_left_behind_by(error):
            return False
        if self.cursor.connection is self.db.connection:
            if self.db.in_atomic_block:
                return False
            self.db.reopen()
        self.db.ensure_connection()
        self.cursor = self.db.create_cursor()
        return True


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
