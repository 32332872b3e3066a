"""Where a database lies, and what a connection learns there about this node."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import WRITABLE, PrimaryDetector
from litefs_django._litefs.node_file import NodeFile
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django.exceptions import NotPrimaryError


class Reopen(sqlite3.OperationalError):
    """Nothing was run: LiteFS or this node's role is not what it was when the connection was opened.

    Django's side opens a new connection and runs the statement there.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"{why} This connection is of before: use the one that Django opens at its next use.")


class Gone(sqlite3.OperationalError):
    """LiteFS does not serve the database here now. Nothing of what was under way is committed."""


class Role(Enum):
    """What the database file says of this node."""

    PRIMARY = "primary"
    REPLICA = "replica"
    # The mount is gone, or it is another one than the connection's.
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a database lies, and what its connections share."""

    alias: str
    path: Path
    settings: LiteFSSettings
    detector: PrimaryDetector
    node_file: NodeFile

    def role(self, device: int) -> Role:
        """This node's role now on the mount of that st_dev, by one stat of the database.

        Its mode bits say it (LiteFS, fuse/database_node.go). With Raft they can be late, on a LiteFS that goes on after
        it was stopped: then the lease has to be alive, too.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            return Role.GONE
        if status.st_dev != device:
            return Role.GONE
        return Role.PRIMARY if status.st_mode & WRITABLE and self.may_be_primary() else Role.REPLICA

    def may_be_primary(self) -> bool:
        """Whether the lease is alive, as far as there is one to be seen: with Raft."""
        return self.settings.leader_election != "raft" or self.node_file.is_leased()

    def not_primary(self, why: str = "") -> NotPrimaryError:
        """The error that names this node and the primary."""
        cluster = self.settings.cluster
        try:
            name = self.detector.primary_name()
        except MountError:
            name = None
        # LiteFS names nobody while it is not connected; with a static lease there is no other.
        is_away = name is None and cluster.primary not in (None, cluster.node)
        primary = cluster.get(cluster.primary if is_away else name)
        if primary is None:
            whither = f"The primary is {name!r}." if name else "No primary is known now."
        else:
            whither = f"The primary is {primary.name!r}" + (f", {primary.url}" if primary.url else ".")
            if is_away:
                whither += f"{' and' if primary.url else ' It'} does not answer now."
        message = f"Database {self.alias!r} cannot be written on node {cluster.node!r}. {why}{whither}"
        return NotPrimaryError(message, self.alias, cluster.this, primary)

    def is_disk_full(self) -> bool:
        """Whether LiteFS has no room left, as far as this user may look."""
        try:
            room = os.statvfs(self.settings.data_path)
        except OSError:
            return False
        return room.f_bavail * room.f_frsize < 1 << 20
