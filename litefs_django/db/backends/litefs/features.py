"""What differs from Django's SQLite backend, as far as Django's own tests can tell."""

from __future__ import annotations

from django.db.backends.sqlite3 import features


class DatabaseFeatures(features.DatabaseFeatures):
    """SQLite's features."""
