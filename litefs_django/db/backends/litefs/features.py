"""What differs from Django's SQLite backend, as far as Django's own tests can tell."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from django.db.backends.sqlite3 import features
from django.utils.functional import cached_property


class DatabaseFeatures(features.DatabaseFeatures):
    """SQLite's features."""

    @cached_property
    def supports_json_field(self) -> bool:  # type: ignore[override]
        # Django asks through the connection, from 6.1 on in each system check of a JSONField: LiteFS would have to run
        # for `manage.py check`.
        with closing(sqlite3.connect(":memory:")) as memory:
            try:
                memory.execute("SELECT JSON('1')")
            except sqlite3.OperationalError:
                return False
        return True

    @cached_property
    def django_test_skips(self) -> dict[str, set[str]]:  # type: ignore[override]
        skips: dict[str, set[str]] = super().django_test_skips
        connection: Any = self.connection
        if not connection.is_guarded:
            return skips
        return skips | {
            "On LiteFS's primary transactions begin IMMEDIATE, and this test asserts a bare BEGIN.": {
                "backends.base.test_base.DatabaseWrapperLoggingTests.test_commit_debug_log",
                "backends.sqlite.tests.TestTransactionMode.test_default_transaction_mode",
            },
            "supports_json_field asks SQLite without a connection, and this test asserts the connection's error.": {
                "backends.sqlite.test_features.FeaturesTests.test_supports_json_field_operational_error",
            },
            # test_default_transaction_mode, skipped above, opens the connection that this one would leave alone.
            "In a file database it closes the test runner's own connection if no test before it has opened one.": {
                "backends.sqlite.tests.ThreadSharing.test_database_sharing_in_threads",
            },
        }
