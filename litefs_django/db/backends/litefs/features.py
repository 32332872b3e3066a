"""What differs from Django's SQLite backend, as far as Django's own tests can tell."""

from __future__ import annotations

from typing import Any

from django.db.backends.sqlite3 import features


class DatabaseFeatures(features.DatabaseFeatures):
    """SQLite's features."""

    @property
    def django_test_skips(self) -> dict[str, set[str]]:  # type: ignore[override]
        skips: dict[str, set[str]] = super().django_test_skips
        connection: Any = self.connection
        if not connection.is_guarded:
            return skips
        return skips | {
            "On LiteFS's primary transactions begin IMMEDIATE, and this test asserts a bare BEGIN.": {
                "backends.base.test_base.DatabaseWrapperLoggingTests.test_commit_debug_log",
                "backends.base.test_base.DatabaseWrapperLoggingTests.test_rollback_debug_log",
                "backends.sqlite.tests.TestTransactionMode.test_default_transaction_mode",
            },
            "A TEST NAME is a file on the mount, and this test asserts the bare name.": {
                "backends.sqlite.test_creation.TestDbSignatureTests.test_custom_test_name",
            },
        }
