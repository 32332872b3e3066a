"""What the database backend and the middleware tell each other about one request.

The middleware writes the note into a context variable, which Django's and asyncio's own means carry
into threads (sync_to_async, asyncio.to_thread) and tasks; a thread that is started by hand has none.
It is closed when the request has been answered: whoever still works then is outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from django.db.utils import OperationalError

from litefs_django.exceptions import CommitOutcomeUnknown, HandOver

if TYPE_CHECKING:
    from django.http import HttpRequest


class RequestNote:
    """One request that could still be handed over.

    `refused` is the first error that this node could not serve it for; `written` the aliases of this ENGINE that
    something was committed to, `has_written` whether anything was committed anywhere, or may have been; `unknown`
    the first commit of which that is not known.

    `reader` is the request, while it is one that should only read. ATOMIC_REQUESTS then begins without the write
    turn: `begun` holds the aliases of which it has. `is_stale` when such a transaction had to write in the end, and
    another one had written meanwhile: the request is to run again, as one that writes.
    """

    def __init__(self, reader: HttpRequest | None) -> None:
        self.is_open = True
        self.reader = reader
        self.begun: set[str] = set()
        self.is_stale = False
        self.refused: OperationalError | None = None
        self.unknown: CommitOutcomeUnknown | None = None
        self.written: set[str] = set()
        self.has_written = False
        self._hooks: list[Callable[[], None]] = []

    def defer(self, hook: Callable[[], None]) -> None:
        """Runs it when the request has been answered here, and not when it is handed over."""
        self._hooks.append(hook)

    @property
    def has_hooks(self) -> bool:
        return bool(self._hooks)

    def run_hooks(self) -> None:
        while self._hooks:
            self._hooks.pop(0)()


_current: ContextVar[RequestNote | None] = ContextVar("litefs_django_request", default=None)
_is_handled: ContextVar[bool] = ContextVar("litefs_django_handles_not_primary", default=False)


def current() -> RequestNote | None:
    """The note of the request that this code runs for; None outside of requests."""
    note = _current.get()
    return note if note is not None and note.is_open else None


@contextmanager
def opened(reader: HttpRequest | None) -> Iterator[RequestNote]:
    """A new note, for what runs inside."""
    note = RequestNote(reader)
    token = _current.set(note)
    try:
        yield note
    finally:
        note.is_open = False
        _current.reset(token)


@contextmanager
def handling() -> Iterator[None]:
    """Inside, what would hand the request over stays an OperationalError, for the project to handle."""
    token = _is_handled.set(True)
    try:
        yield
    finally:
        _is_handled.reset(token)


def refuse(error: OperationalError) -> BaseException:
    """What the backend is to raise where this node cannot do what the request needs, and nothing was committed."""
    note = current()
    if note is None or _is_handled.get():
        return error
    note.refused = note.refused or error
    return HandOver(error)


def begins_view(alias: str) -> bool:
    """Whether the transaction that begins is ATOMIC_REQUESTS' own around the view of a request that should only read.

    It is the first one once the view is known. Not for a request that has written: it could not run again.
    """
    note = current()
    if note is None or note.reader is None or note.has_written or alias in note.begun:
        return False
    match = note.reader.resolver_match
    if match is None or alias in getattr(match.func, "_non_atomic_requests", ()):
        return False
    note.begun.add(alias)
    return True


def stale(alias: str, error: OperationalError) -> BaseException:
    """What the backend is to raise for a write in a transaction whose snapshot is older than the last commit."""
    note = current()
    if note is None or alias not in note.begun:
        return error
    note.refused = note.refused or error
    note.is_stale = True
    return HandOver(error)


def committed(alias: str) -> None:
    """Something was committed to this database of our ENGINE."""
    if note := current():
        note.written.add(alias)
        note.has_written = True


def may_have_committed(error: CommitOutcomeUnknown) -> None:
    """Something may have been committed."""
    committed(error.alias)
    if note := current():
        note.unknown = note.unknown or error


def committed_elsewhere() -> None:
    """Something was committed that handing the request over would do twice."""
    if note := current():
        note.has_written = True
