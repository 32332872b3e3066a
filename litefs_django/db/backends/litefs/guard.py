"""A sqlite3 connection that cannot write in the wrong place, nor say "committed" of what is not.

On a replica it is opened mode=ro: SQLite itself refuses. On the primary every write takes the write
turn, finds the role again inside it, commits behind the gate, and is checked behind it. All of that
stands here, below Django, so that `connection.connection` is guarded like the ORM.

It raises sqlite3's errors, which Django turns into its own, and the two of `litefs_django.exceptions`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from litefs_django._litefs.judge import Kind
from litefs_django._litefs.node_file import boottime_ns
from litefs_django.db.backends.litefs.cursor import Cursor
from litefs_django.db.backends.litefs.locks import Locks, end_with_thread, run_after
from litefs_django.db.backends.litefs.mounted import MountedConnection
from litefs_django.db.backends.litefs.place import Gone, Place, Reopen, Role
from litefs_django.exceptions import CommitOutcomeUnknown, NotPrimaryError
from litefs_django.handover import note

T = TypeVar("T")

# What SQLite says when LiteFS refuses it, fails or has gone: BUSY, READONLY, IOERR, CANTOPEN, PROTOCOL, FULL.
_FROM_LITEFS = {5, 8, 10, 13, 14, 15}

_ISOLATION_LEVEL: Any = sqlite3.Connection.isolation_level

# Nanoseconds for which a confirmed commit lets this connection begin another transaction unasked: asking is a twentieth
# of a short one, all other writers wait for it, and whatever became of the role its COMMIT finds it out.
_CONFIRMED_NS = 100_000_000


class Connection(MountedConnection):
    """One guarded connection."""

    def __init__(self, *args: Any, place: Place, **kwargs: Any) -> None:
        self.locks = Locks(place, kwargs.get("timeout", 5.0))
        self._has_written = False
        self._began_with_savepoint = False
        self._confirmed_at = 0
        self._one_at_a_time = threading.RLock()
        super().__init__(*args, place=place, **kwargs)

    # What Python's sqlite3 and Django call.

    def cursor(self, factory: Any = None) -> Any:
        if not issubclass(factory or Cursor, Cursor):
            raise sqlite3.NotSupportedError(f"A cursor of {factory} would write unguarded.")
        return super().cursor(factory or Cursor)

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def executescript(self, script: str) -> Any:
        return self.cursor().executescript(script)

    def commit(self) -> None:
        with self._one_at_a_time:
            if self.in_transaction:
                self.check_alive()
                self._commit(super().commit)

    def rollback(self) -> None:
        with self._one_at_a_time:
            try:
                if self.in_transaction:
                    self.check_alive()
                super().rollback()
            finally:
                self.end_turn()

    def __exit__(self, exc_type: Any, *exc_info: Any) -> Any:
        if exc_type is not None:
            self.rollback()
            return False
        try:
            self.commit()
        except BaseException:
            self.rollback()
            raise
        return False

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.locks.close()

    @property
    def autocommit(self) -> int:
        """sqlite3.LEGACY_TRANSACTION_CONTROL: the other ways of Python 3.12 commit where nothing guards it."""
        return -1

    @autocommit.setter
    def autocommit(self, value: object) -> None:
        raise sqlite3.NotSupportedError("Use Django's set_autocommit() in place of sqlite3's autocommit attribute.")

    def __del__(self) -> None:
        # With its last reader. One that could not be opened has nothing to close.
        with suppress(sqlite3.ProgrammingError):
            self.close()

    @property
    def isolation_level(self) -> Any:
        """As sqlite3's: None is autocommit; "" begins a transaction before DML."""
        return super().isolation_level

    @isolation_level.setter
    def isolation_level(self, level: Any) -> None:
        if level is None:
            # sqlite3 itself would commit here, unguarded.
            self.commit()
        _ISOLATION_LEVEL.__set__(self, level)

    def backup(self, target: sqlite3.Connection, **kwargs: Any) -> None:
        if not isinstance(target, Connection):
            return super().backup(target, **kwargs)
        target.check_alive()
        if not target.is_writable:
            raise target._refusal()
        with target._one_at_a_time:
            return target._run_alone(lambda: super(Connection, self).backup(target, **kwargs))

    def blobopen(self, *args: Any, readonly: bool = False, **kwargs: Any) -> sqlite3.Blob:
        open_blob = super().blobopen
        if readonly or not self.is_writable:
            return open_blob(*args, readonly=True, **kwargs)
        if not self.in_transaction:
            raise sqlite3.NotSupportedError("Open a blob for writing inside transaction.atomic().")
        with self._one_at_a_time:
            return self._run_inside(lambda: open_blob(*args, readonly=False, **kwargs))

    def make_wal(self) -> None:
        """Turns a new, empty database into a WAL one, and thereby into one that LiteFS replicates."""
        self._run_alone(lambda: sqlite3.Cursor(self).execute("PRAGMA journal_mode = WAL"))

    # Running it.

    def run(self, kind: Kind, statement: Callable[[], T]) -> T:
        """Runs what is not a plain read, with the locks and checks that its kind asks for.

        One at a time: the threads that share a connection share its turn and its gate, too.
        """
        with self._one_at_a_time:
            return self._run(kind, statement)

    def _run(self, kind: Kind, statement: Callable[[], T]) -> T:
        if not self.is_writable:
            if kind is Kind.BEGIN_WRITE and not self.in_transaction:
                self.agree_with_role()
            return self._run_on_replica(statement)
        if not self.in_transaction:
            self._began_with_savepoint = kind is Kind.SAVEPOINT
        if kind is Kind.COMMIT or (kind is Kind.RELEASE and self._began_with_savepoint):
            return self._commit(statement)
        if kind in (Kind.BEGIN, Kind.SAVEPOINT, Kind.RELEASE):
            return statement()
        if kind is Kind.ROLLBACK:
            try:
                return statement()
            finally:
                if not self.in_transaction:
                    self.end_turn()
        if self.in_transaction:
            return self._run_inside(statement)
        if kind is Kind.BEGIN_WRITE or (kind is Kind.DML and self.isolation_level is not None):
            return self._begin(kind, statement)
        return self._run_alone(statement)

    def explained(self, error: sqlite3.Error, *, at_commit: bool) -> Exception:
        """The error to raise for one of SQLite's, once it is known what became of LiteFS."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _FROM_LITEFS:
            return error
        role = self.role()
        if role is Role.REPLICA:
            self.is_obsolete = True
            return self.place.not_primary("It has lost the primary's role meanwhile. ")
        if role is Role.GONE:
            if not at_commit:
                return self.gone(error)
            return self._unknown(f"SQLite said {str(error)!r}, and LiteFS has ended")
        if self.place.is_disk_full():
            return sqlite3.OperationalError(
                f"The disk is full: LiteFS cannot write to {self.place.settings.data_path} (SQLite: {error})."
            )
        return error

    def _run_on_replica(self, statement: Callable[[], T]) -> T:
        was_in_transaction = self.in_transaction
        try:
            return statement()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_READONLY:
                self.check_gone(error)
                raise
            if not was_in_transaction:
                # sqlite3 has begun one for this statement, under AUTOCOMMIT=False.
                super().rollback()
            raise self._refusal() from error

    def _run_inside(self, statement: Callable[[], T]) -> T:
        waited = 0.0 if self.locks.has_turn else self._take_turn()
        self._has_written = True
        try:
            return self._explaining(statement, at_commit=False, waited=waited)
        finally:
            if not self.in_transaction:
                self.end_turn()

    def _begin(self, kind: Kind, statement: Callable[[], T]) -> T:
        try:
            waited = self._take_turn(unasked_until=self._confirmed_at + _CONFIRMED_NS)
            if kind is Kind.DML:
                begin = sqlite3.Cursor(self).execute
                self._explaining(lambda: begin("BEGIN IMMEDIATE"), at_commit=False, waited=waited)
                self._has_written = True
                waited = 0.0
            return self._explaining(statement, at_commit=False, waited=waited)
        except NotPrimaryError:
            if kind is Kind.BEGIN_WRITE:
                # It may only want to read, and reads are never refused.
                raise Reopen("This node is not the primary any more.") from None
            raise
        except Gone as error:
            if self.in_transaction:
                raise
            raise Reopen("LiteFS has ended meanwhile.") from error
        finally:
            if not self.in_transaction:
                self.end_turn()

    def _run_alone(self, statement: Callable[[], T]) -> T:
        if self.locks.has_gate:
            # A function that SQLite calls inside another write runs it; they commit together.
            return statement()
        try:
            waited = self._take_turn(with_gate=True)
            result = self._explaining(statement, at_commit=True, waited=waited)
            self._confirm()
            return result
        finally:
            self._end_commit()

    def _commit(self, statement: Callable[[], T]) -> T:
        try:
            if not self._has_written:
                return statement()
            has_waited = self._waiting(lambda: self.locks.take_gate(self.is_left_behind))
            # The supervisor may have had it to stop LiteFS or to change the primary: COMMIT's outcome would be unknown.
            if has_waited or self.node_file.generation() is None or not self.place.may_be_primary():
                self._find_primary()
            self.check_alive()
            result = self._explaining(statement, at_commit=True)
            if not self.in_transaction:
                # The next writer may begin: the gate, which this one still has, keeps him from committing.
                self.end_turn()
                self._confirm()
            return result
        finally:
            self._end_commit()

    def _explaining(self, statement: Callable[[], T], *, at_commit: bool, waited: float = 0.0) -> T:
        try:
            return run_after(waited, self, statement)
        except sqlite3.Error as error:
            explained = self.explained(error, at_commit=at_commit)
            if explained is error:
                raise
            raise explained from error

    def _confirm(self) -> None:
        """Raises CommitOutcomeUnknown unless LiteFS is still there and still the primary.

        LiteFS commits when SQLite lets go of its lock, where SQLite ignores an error: of 2,997 commits
        acknowledged under kill -9, 4 were gone; of those that this stat confirmed, none.
        """
        role = self.role()
        if role is Role.PRIMARY:
            self._confirmed_at = boottime_ns()
            note.committed(self.place.alias)
        else:
            self.is_obsolete = role is Role.REPLICA
            what = "this node lost the primary's role" if role is Role.REPLICA else "LiteFS ended"
            raise self._unknown(f"SQLite acknowledged it, but {what} at that moment")

    def _unknown(self, why: str) -> CommitOutcomeUnknown:
        error = CommitOutcomeUnknown(
            f"It is not known whether the commit to database {self.place.alias!r} happened: {why}. "
            "Look before you write it again.",
            self.place.alias,
        )
        note.may_have_committed(error)
        return error

    def _refusal(self) -> Exception:
        if self.role() is not Role.PRIMARY:
            return self.place.not_primary()
        if self.in_transaction:
            self.is_obsolete = True
            return self.place.not_primary("It became the primary during this transaction: run it again. ")
        return Reopen("This node has become the primary.")

    # Turn and gate.

    def _take_turn(self, *, with_gate: bool = False, unasked_until: int = 0) -> float:
        """Takes the turn, and the gate, then finds that this node is still primary; the seconds that it waited.

        Before `unasked_until` (ns of CLOCK_BOOTTIME) it takes that for granted, where a supervisor says that LiteFS is
        there.

        Raises OperationalError ('database is locked') after the connection's time-out, NotPrimaryError,
        or Reopen; it holds no turn then.
        """
        waited = self._waiting(lambda: self.locks.take_turn(self.is_left_behind, with_gate=with_gate))
        try:
            if boottime_ns() < unasked_until and self.is_known_alive() and self.place.may_be_primary():
                end_with_thread(self)
            else:
                self._find_primary()
        except BaseException:
            self.locks.end_turn()
            raise
        return waited

    def _waiting(self, take: Callable[[], T]) -> T:
        """Takes a lock. Where that fails since LiteFS has ended, as its holder's statement hangs then, it says so."""
        try:
            return take()
        except sqlite3.OperationalError:
            self._find_primary()
            raise

    def _find_primary(self) -> None:
        role = self.role()
        if role is Role.PRIMARY:
            end_with_thread(self)
            return
        if role is Role.REPLICA:
            self.is_obsolete = True
            raise self.place.not_primary()
        if self.in_transaction:
            raise Gone("LiteFS ended during this transaction: nothing of it was written.")
        raise Reopen("LiteFS has ended meanwhile.")

    def end_turn(self) -> None:
        """Gives the turn back; nothing happens when this connection does not have it."""
        self._has_written = False
        self.locks.end_turn()

    def _end_commit(self) -> None:
        self.locks.end_gate()
        if not self.in_transaction:
            self.end_turn()
