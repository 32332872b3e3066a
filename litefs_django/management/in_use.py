"""What the commands say where LITEFS["ENABLED"] is False."""

from __future__ import annotations

from django.conf import settings
from django.core.management.base import CommandError

from litefs_django import conf

HINT = "Are NODE and DEBUG set in this shell as they are for litefs_run?"


def not_in_use() -> str:
    """That there is no LiteFS, and which plain file each database is in its place, as a sentence."""
    files = [
        f"{alias}: {conf.file_beside_project(database['NAME'])}"
        for alias, database in settings.DATABASES.items()
        if database.get("ENGINE") == conf.ENGINE and not conf.is_in_memory(database)
    ]
    return f'LITEFS["ENABLED"] is False: no LiteFS, the databases are plain files ({", ".join(files) or "none"}).'


def require_litefs() -> None:
    """Raises CommandError where LiteFS is not in use."""
    if not conf.is_enabled():
        raise CommandError(f"{not_in_use()} {HINT}")
