"""Django's database cache: what it writes on a replica is left undone, and hands no request over for it.

Django allows a cache to lose what it was given, and its database cache ignores a failing INSERT or UPDATE.
It does not ignore a failing DELETE, which it sends for each expired entry that it meets.
"""

from __future__ import annotations

import re
from functools import lru_cache

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

_WRITE = re.compile(r'(INSERT INTO|UPDATE|DELETE FROM) "?([^"\s(]+)"?')


def is_written_by(sql: str) -> bool:
    """Whether this is a write of the database cache to its own table."""
    found = _WRITE.match(sql)
    return found is not None and found[2] in _tables()


def may_be_left_undone(sql: str) -> bool:
    """Whether whoever sent it expects no error."""
    return sql.startswith("DELETE")


@lru_cache(maxsize=1)
def _tables() -> frozenset[str]:
    # It loads models, and this is part of a database backend.
    from django.core.cache.backends.db import BaseDatabaseCache

    return frozenset(
        str(cache.get("LOCATION", ""))
        for cache in settings.CACHES.values()
        if issubclass(import_string(cache["BACKEND"]), BaseDatabaseCache)
    )


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting == "CACHES":
        _tables.cache_clear()


setting_changed.connect(_forget)
