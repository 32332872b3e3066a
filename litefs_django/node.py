"""This node's part in the cluster, read from LiteFS at each call: role, primary, positions.

Public: `from litefs_django import is_primary, position, primary, wait_for`.
"""

from __future__ import annotations

import time

from litefs_django import conf
from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import Position, PrimaryDetector
from litefs_django._litefs.settings import LiteFSSettings, Node

# Seconds between two looks; LiteFS needs about 2 ms to bring a transaction to a replica.
PAUSE = 0.002


def is_primary() -> bool:
    """Whether this node may write now. True where LiteFS is off, False where it does not answer."""
    if not conf.is_enabled():
        return True
    settings = conf.get_settings()
    try:
        return _detector(settings).is_primary(settings.databases[0].name if settings.databases else "")
    except MountError:
        return False


def primary() -> Node | None:
    """The node that may write now; None when none is known, and where LiteFS is off.

    A primary that has just died is named until LiteFS has noticed.
    """
    if not conf.is_enabled():
        return None
    settings = conf.get_settings()
    if is_primary():
        return settings.cluster.this
    try:
        name = _detector(settings).primary_name()
    except MountError:
        return None
    return settings.cluster.get(name) if name else None


def position(using: str = "default") -> Position | None:
    """How far the database with this alias has come on this node.

    None when it has not arrived, when LiteFS does not answer, and where LiteFS is off. Raises KeyError
    for an alias that is not on LiteFS.
    """
    if not conf.is_enabled():
        return None
    settings = conf.get_settings()
    name = {database.alias: database.name for database in settings.databases}[using]
    try:
        return _detector(settings).position(name)
    except MountError:
        return None


def wait_for(position: Position | str | None, timeout: float, using: str = "default") -> bool:
    """Waits until this node has the database at this position; False when `timeout` seconds were not enough.

    `position` is what `position()` has returned, or its text. None is reached at once.
    """
    wanted = Position.parse(position) if isinstance(position, str) else position
    deadline = time.monotonic() + timeout
    while not has(wanted.txid if wanted else 0, using):
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE)
    return True


def has(txid: int, using: str = "default") -> bool:
    """Whether this node has the database as of that TXID, or later. True where LiteFS is off."""
    if not txid or not conf.is_enabled():
        return True
    current = position(using)
    return current is not None and current.txid >= txid


def _detector(settings: LiteFSSettings) -> PrimaryDetector:
    return PrimaryDetector(settings.mount_path)
