"""How sqlite3's errors become Django's: one that LiteFS's absence has caused ends the request, to be handed over."""

from __future__ import annotations

import sqlite3
from typing import Any

from django.db.utils import DatabaseErrorWrapper, OperationalError

from litefs_django.db.backends.litefs.place import Gone
from litefs_django.handover import note


class GuardedErrorWrapper(DatabaseErrorWrapper):
    """Django's, of a guarded connection."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            return
        try:
            super().__exit__(kind, error, trace)
        except OperationalError as raised:
            if isinstance(error, Gone):
                raise note.refuse(raised) from error
            raise

    def __call__(self, fetch: Any) -> Any:
        """Django wraps a cursor's fetching in it."""

        def inner(*args: Any, **kwargs: Any) -> Any:
            with self:
                try:
                    return fetch(*args, **kwargs)
                except sqlite3.OperationalError as error:
                    fetch.__self__.connection.check_gone(error)
                    raise

        return inner
