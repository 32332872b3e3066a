"""What differs from Django's SQLite operations."""

from __future__ import annotations

import sqlite3
from typing import Any

from django.db.backends.sqlite3 import operations


class DatabaseOperations(operations.DatabaseOperations):
    """SQLite's operations."""

    def last_executed_query(self, cursor: Any, sql: str, params: Any) -> Any:
        # Django asks the connection to quote the parameters, and its LiteFS may just have ended.
        try:
            return super().last_executed_query(cursor, sql, params)
        except sqlite3.OperationalError:
            return sql
