"""System checks; docs/checks.rst has an entry for each id. An id is never used again.

Settings are checked by every command. What only a machine that is to run LiteFS needs is checked with `check --deploy`
alone: tests, and commands on a machine without LiteFS, are not stopped for want of it.
"""

from __future__ import annotations

from litefs_django.checks.configuration import (
    check_connection_age,
    check_engines,
    check_mount_path,
    check_overlaps,
    check_settings,
    check_unguarded,
    check_voters,
)
from litefs_django.checks.context import Check
from litefs_django.checks.handover import check_handover, check_missing_middleware, check_saved_sessions
from litefs_django.checks.machine import (
    check_binary,
    check_directories,
    check_exposure,
    check_machine,
    check_port,
    check_raft_exposure,
)
from litefs_django.checks.project import (
    check_caches,
    check_default_caches,
    check_default_uploads,
    check_sessions,
    check_uploads,
)

__all__ = [
    "CHECKS",
    "DEPLOY_CHECKS",
    "FAMILIES",
    "TAG",
    "Check",
    "check_binary",
    "check_caches",
    "check_connection_age",
    "check_default_caches",
    "check_default_uploads",
    "check_directories",
    "check_engines",
    "check_exposure",
    "check_handover",
    "check_machine",
    "check_missing_middleware",
    "check_mount_path",
    "check_overlaps",
    "check_port",
    "check_raft_exposure",
    "check_saved_sessions",
    "check_sessions",
    "check_settings",
    "check_unguarded",
    "check_uploads",
    "check_voters",
]

TAG = "litefs"
CHECKS: tuple[Check, ...] = (
    check_settings,
    check_voters,
    check_mount_path,
    check_overlaps,
    check_engines,
    check_unguarded,
    check_connection_age,
    check_caches,
    check_sessions,
    check_uploads,
    check_handover,
    check_missing_middleware,
    check_saved_sessions,
)
DEPLOY_CHECKS: tuple[Check, ...] = (
    check_machine,
    check_binary,
    check_directories,
    check_port,
    check_exposure,
    check_raft_exposure,
    check_default_caches,
    check_default_uploads,
)
# All of them, by what they look at.
FAMILIES: tuple[tuple[str, tuple[Check, ...]], ...] = (
    (
        "settings",
        (
            check_settings,
            check_voters,
            check_engines,
            check_unguarded,
            check_connection_age,
            check_handover,
            check_missing_middleware,
        ),
    ),
    (
        "project",
        (
            check_caches,
            check_default_caches,
            check_sessions,
            check_saved_sessions,
            check_uploads,
            check_default_uploads,
        ),
    ),
    ("machine", (check_machine,)),
    ("binary", (check_binary,)),
    ("directories", (check_mount_path, check_overlaps, check_directories)),
    ("port", (check_port, check_exposure, check_raft_exposure)),
)
