"""What the project keeps on each machine for itself, where the nodes of a cluster should share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Warning

from litefs_django.checks import local_state
from litefs_django.checks.context import node_count


def check_caches(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W004: a cache that each node of a cluster has for itself."""
    return _local_caches() if _is_set("CACHES") else []


def check_default_caches(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W004, for Django's default cache: nobody has said that the project uses it."""
    return [] if _is_set("CACHES") else _local_caches()


def check_sessions(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W005: sessions that the nodes of a cluster do not share."""
    if not node_count() or not (reason := local_state.local_sessions()):
        return []
    return [
        Warning(
            f"SESSION_ENGINE: {settings.SESSION_ENGINE!r} {reason}",
            hint="Use 'django.contrib.sessions.backends.db', or a cache that all nodes share.",
            id="litefs_django.W005",
        )
    ]


def check_uploads(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W006: uploads that lie on one node of a cluster."""
    return _local_uploads() if local_state.expects_uploads() else []


def check_default_uploads(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W006, where nothing says that any will come."""
    return [] if local_state.expects_uploads() else _local_uploads()


def _is_set(name: str) -> bool:
    return bool(settings.is_overridden(name))  # type: ignore[misc]  # unknown to django-stubs


def _local_caches() -> list[CheckMessage]:
    if not (count := node_count()):
        return []
    return [
        Warning(
            f'CACHES["{alias}"]["BACKEND"]: {backend!r} keeps its content on one node, and LITEFS["NODES"] has '
            f"{count}: what one node stores, counts or deletes the others do not see.",
            hint="For what the nodes share (throttling, locks, invalidation) use Redis, Memcached or a cache in the "
            'database. Where each may have its own, silence "litefs_django.W004".',
            id="litefs_django.W004",
        )
        for alias, backend in local_state.local_caches().items()
    ]


def _local_uploads() -> list[CheckMessage]:
    if not node_count() or not (storage := local_state.local_uploads()):
        return []
    return [
        Warning(
            f'STORAGES["default"]: {storage!r} keeps a file on the node that it was uploaded to: LiteFS replicates '
            "databases alone.",
            hint="Use a storage that all nodes share (S3, the database). Where MEDIA_ROOT is a directory that they "
            'share, or nothing is uploaded, silence "litefs_django.W006".',
            id="litefs_django.W006",
        )
    ]
