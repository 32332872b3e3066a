"""LITEFS and DATABASES: what every command checks, without a look at more of the machine than a few paths."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from litefs_django import conf
from litefs_django._litefs.directories import overlap
from litefs_django._litefs.errors import SettingsError
from litefs_django.checks.context import is_litefs_mounted, node_count, valid_settings


def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E002 to E008: each mistake in LITEFS and in the NAME of a database on LiteFS. E050: Raft is not installed."""
    if not conf.is_enabled():
        return []
    try:
        conf.read()
    except SettingsError as error:
        return [
            Error(f"{problem.setting}: {problem.message}", hint=problem.hint, id=f"litefs_django.{problem.code}")
            for problem in error.problems
        ]
    return []


def check_voters(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W040: with Raft a number of nodes of which one gains nothing."""
    configured = valid_settings()
    if configured is None or configured.leader_election != "raft" or len(configured.cluster.nodes) % 2:
        return []
    count = len(configured.cluster.nodes)
    borne = count // 2 - 1
    lost = "none of them may be lost" if not borne else f"{borne} of them may be lost, as of {count - 1}"
    return [
        Warning(
            f"LITEFS[\"NODES\"]: with 'raft' most of the nodes have to reach each other. Of {count} {lost}.",
            hint='Add a node, or one that only votes ("WITNESS": True).',
            id="litefs_django.W040",
        )
    ]


def check_mount_path(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E009: files where LiteFS is to be mounted. They are no part of the cluster, and the mount would hide them."""
    configured = valid_settings()
    # By the kernel's list of mounts: a LiteFS that hangs is not asked.
    if configured is None or sys.platform != "linux" or is_litefs_mounted(configured):
        return []
    try:
        names = sorted(os.listdir(configured.mount_path))
    except OSError:
        # Not there yet.
        return []
    if not names:
        return []
    return [
        Error(
            f'LITEFS["MOUNT_PATH"]: {str(configured.mount_path)!r} is not empty, and LiteFS is not mounted there: '
            f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}.",
            hint="Move them away. A database among them was written while LiteFS was not mounted: look what is in it.",
            id="litefs_django.E009",
        )
    ]


def check_overlaps(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E020: RUN_PATH or DATA_PATH on the mount by a symbolic link. Without one it is E006."""
    configured = valid_settings()
    if configured is None or sys.platform != "linux":
        return []
    found: list[CheckMessage] = []
    for key, path in (("DATA_PATH", configured.data_path), ("RUN_PATH", configured.run)):
        if real := overlap(path, configured.mount_path):
            message = f'LITEFS["{key}"]: {str(path)!r} is really {str(real)!r}, which overlaps LITEFS["MOUNT_PATH"] '
            found.append(
                Error(
                    f"{message}{str(configured.mount_path)!r}.",
                    hint="Give a directory elsewhere: the mount holds databases and nothing else.",
                    id="litefs_django.E020",
                )
            )
    return found


def check_engines(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W001: an SQLite database that stays on the node that writes it."""
    if not (count := node_count()):
        return []
    return [
        Warning(
            f'DATABASES["{alias}"]["ENGINE"]: {database["ENGINE"]!r} keeps its data on one node, and '
            f'LITEFS["NODES"] has {count}: each sees its own.',
            hint=f"Use {conf.ENGINE!r}.",
            id="litefs_django.W001",
        )
        for alias, database in settings.DATABASES.items()
        if _is_other_sqlite(database)
    ]


def check_unguarded(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E017: another SQLite ENGINE on LiteFS's mount, which nothing guards."""
    configured = valid_settings()
    if configured is None:
        return []
    return [
        Error(
            f'DATABASES["{alias}"]["ENGINE"]: {database["ENGINE"]!r} writes to {str(database["NAME"])!r} on '
            'LITEFS["MOUNT_PATH"] unguarded: acknowledged commits can be lost there.',
            hint=f"Use {conf.ENGINE!r}.",
            id="litefs_django.E017",
        )
        for alias, database in settings.DATABASES.items()
        if _is_other_sqlite(database) and Path(str(database.get("NAME", ""))).is_relative_to(configured.mount_path)
    ]


def check_connection_age(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W002: a new connection for each request. Under ASGI it cannot be otherwise."""
    if valid_settings() is None or getattr(settings, "ASGI_APPLICATION", None):
        return []
    return [
        Warning(
            f'DATABASES["{alias}"]["CONN_MAX_AGE"]: 0 makes each request open a connection anew, and on LiteFS that '
            "costs more than a query.",
            hint='Set it to None, and "CONN_HEALTH_CHECKS" as you like.',
            id="litefs_django.W002",
        )
        for alias, database in settings.DATABASES.items()
        if database.get("ENGINE") == conf.ENGINE
        and not conf.is_in_memory(database)
        and database.get("CONN_MAX_AGE", 0) == 0
    ]


def _is_other_sqlite(database: dict[str, Any]) -> bool:
    engine = str(database.get("ENGINE", ""))
    is_sqlite = any(name in engine for name in ("sqlite", "spatialite"))
    return is_sqlite and engine != conf.ENGINE and not conf.is_in_memory(database)
