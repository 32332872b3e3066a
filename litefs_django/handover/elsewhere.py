"""Notices what a request commits through the connections of other ENGINEs: handed over, it would do that twice."""

from __future__ import annotations

import re
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from litefs_django import conf
from litefs_django.handover import note

_READS = re.compile(r"[\s(]*(SELECT|SHOW|EXPLAIN|SET|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|VALUES|PRAGMA)\b", re.IGNORECASE)
_WITH = re.compile(r"\s*WITH\b(?!.*\b(INSERT|UPDATE|DELETE|MERGE)\b)", re.IGNORECASE | re.DOTALL)


def watch() -> None:
    """Watches every connection from now on."""
    connection_created.connect(_connected, dispatch_uid=__name__)
    for connection in connections.all(initialized_only=True):
        _connected(connection)


def _connected(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    if connection.settings_dict["ENGINE"] != conf.ENGINE and _notice not in connection.execute_wrappers:
        connection.execute_wrappers.append(_notice)


def _notice(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
    result = execute(sql, params, many, context)
    if note.current() and not _READS.match(sql) and not _WITH.match(sql):
        connection = context["connection"]
        if connection.in_atomic_block:
            # Not at all when it is rolled back.
            connection.on_commit(note.committed_elsewhere)
        else:
            note.committed_elsewhere()
    return result
