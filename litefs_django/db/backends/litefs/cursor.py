"""Django's SQLite cursor over a guarded one."""

from __future__ import annotations

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

from litefs_django.db.backends.litefs.guard import Cursor


class GuardedCursor(SQLiteCursorWrapper, Cursor):  # type: ignore[misc]
    """Turns %s into ? (SQLiteCursorWrapper), then runs it guarded (Cursor)."""
