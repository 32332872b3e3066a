"""What each check needs to know first."""

from __future__ import annotations

from collections.abc import Callable

from django.core.checks import CheckMessage

from litefs_django import conf
from litefs_django._litefs.directories import real_mount_path
from litefs_django._litefs.errors import SettingsError
from litefs_django._litefs.node.mounts import is_mounted
from litefs_django._litefs.settings import LiteFSSettings

Check = Callable[..., list[CheckMessage]]


def valid_settings() -> LiteFSSettings | None:
    """What LITEFS says; None when LiteFS is not in use, and when it is wrong, which check_settings reports."""
    if not conf.is_enabled():
        return None
    try:
        return conf.read()
    except SettingsError:
        return None


def litefs_settings() -> LiteFSSettings | None:
    """The same, and None on a witness, which runs no LiteFS."""
    configured = valid_settings()
    return None if configured is None or configured.cluster.this.is_witness else configured


def node_count() -> int:
    """How many nodes have the databases; 0 where it is one alone, or LiteFS is not in use."""
    configured = valid_settings()
    count = 0 if configured is None else len(configured.cluster.data_nodes)
    return count if count > 1 else 0


def is_litefs_mounted(settings: LiteFSSettings) -> bool:
    """Whether a LiteFS is mounted on MOUNT_PATH, a dead one too. One that hangs is not asked; Linux only."""
    return is_mounted(real_mount_path(settings.mount_path))
