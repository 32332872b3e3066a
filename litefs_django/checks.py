"""System checks; docs/checks.rst has an entry for each id. An id is never used again.

Settings are checked by every command. What only a machine that is to run LiteFS needs is checked with `check --deploy`
alone: tests, and commands on a machine without LiteFS, are not stopped for want of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from litefs_django import conf
from litefs_django._litefs.errors import BinaryError, SettingsError
from litefs_django._litefs.mount import PrimaryDetector
from litefs_django._litefs.settings import LiteFSSettings

TAG = "litefs"

Check = Callable[..., list[CheckMessage]]


def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E002 to E008: each mistake in LITEFS and in the NAME of a database on LiteFS."""
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


def check_mount_path(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E009: files where LiteFS is to be mounted. They are no part of the cluster, and the mount would hide them."""
    configured = _settings()
    if configured is None or sys.platform != "linux":
        return []
    if PrimaryDetector(configured.mount_path).device() is not None:
        return []
    try:
        names = sorted(os.listdir(configured.mount_path))
    except OSError:
        # Not there yet; or the dead mount of a LiteFS that was killed, which litefs_run takes away.
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


def check_engines(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W001: an SQLite database that stays on the node that writes it."""
    configured = _settings()
    if configured is None or len(configured.cluster.nodes) < 2:
        return []
    return [
        Warning(
            f'DATABASES["{alias}"]["ENGINE"]: {database["ENGINE"]!r} keeps its data on one node, and '
            f'LITEFS["NODES"] has {len(configured.cluster.nodes)}: each sees its own.',
            hint=f"Use {conf.ENGINE!r}.",
            id="litefs_django.W001",
        )
        for alias, database in settings.DATABASES.items()
        if _is_other_sqlite(database)
    ]


def check_unguarded(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E017: another SQLite ENGINE on LiteFS's mount, which nothing guards."""
    configured = _settings()
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
    if _settings() is None or getattr(settings, "ASGI_APPLICATION", None):
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


def check_machine(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E010 to E013 and E016: what LiteFS needs of this machine, for the user who runs the check."""
    configured = _settings()
    if configured is None:
        return []
    if sys.platform != "linux":
        return [
            Error(
                f"LiteFS runs on Linux only, and this is {sys.platform}.",
                hint='To develop without it set LITEFS["ENABLED"] to False.',
                id="litefs_django.E016",
            )
        ]
    from litefs_django._litefs.binary import missing_requirements
    from litefs_django._litefs.config import ConfigGenerator

    allow_other = ConfigGenerator(configured).is_open_to_others
    return [
        Error(
            f"This machine lacks {requirement.missing}; LiteFS cannot be mounted.",
            hint=requirement.command,
            id="litefs_django." + next(code for what, code in REQUIRED if requirement.missing.startswith(what)),
        )
        for requirement in missing_requirements(os.geteuid() == 0, allow_other)
    ]


def check_binary(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E014 and E015: no litefs binary, or one that does not run here or is of another version."""
    configured = _settings()
    if configured is None:
        return []
    from litefs_django._litefs import binary

    try:
        path = binary.find(configured.binary)
    except BinaryError as error:
        return [Error(str(error), id="litefs_django.E014")]
    try:
        binary.verify(path)
    except BinaryError as error:
        return [Error(str(error), id="litefs_django.E015")]
    return []


REQUIRED = (
    ("/dev/fuse", "E010"),
    ("the right to mount", "E011"),
    ("fusermount3", "E012"),
    ("user_allow_other", "E013"),
)
CHECKS: tuple[Check, ...] = (check_settings, check_mount_path, check_engines, check_unguarded, check_connection_age)
DEPLOY_CHECKS: tuple[Check, ...] = (check_machine, check_binary)


def _settings() -> LiteFSSettings | None:
    """What LITEFS says; None when LiteFS is not in use, and when it is wrong, which check_settings reports."""
    if not conf.is_enabled():
        return None
    try:
        return conf.read()
    except SettingsError:
        return None


def _is_other_sqlite(database: dict[str, Any]) -> bool:
    engine = str(database.get("ENGINE", ""))
    is_sqlite = any(name in engine for name in ("sqlite", "spatialite"))
    return is_sqlite and engine != conf.ENGINE and not conf.is_in_memory(database)
