"""What a connection knows of the LiteFS that it was opened on: is it still there, and what is this node in it?"""

from __future__ import annotations

import sqlite3
from typing import Any

from litefs_django.db.backends.litefs.place import Gone, Place, Reopen, Role

# A generation that no supervisor ever gives.
_ENDED = -1


class MountedConnection(sqlite3.Connection):
    """`device` and `generation` are of the mount that it was opened on, `is_writable` this node's role then.

    `is_obsolete` once it has found another role than that. Once it has found its mount gone it is left behind for
    good, whatever a supervisor says.
    """

    def __init__(
        self, *args: Any, place: Place, is_writable: bool, device: int, generation: int | None, **kwargs: Any
    ) -> None:
        self.place = place
        self.node_file = place.node_file
        self.is_writable = is_writable
        self.device = device
        self.generation = generation
        self.is_obsolete = False
        super().__init__(*args, **kwargs)

    def role(self) -> Role:
        """This node's role now."""
        role = self.place.role(self.device)
        if role is Role.GONE:
            self.generation = _ENDED
        return role

    def is_left_behind(self) -> bool:
        """Whether the LiteFS that this connection was opened on has ended, as far as is known."""
        if self.generation == _ENDED:
            return True
        current = self.node_file.generation()
        if current is None or current == self.generation:
            return False
        if self.generation is None and not current & 1 and self.role() is not Role.GONE:
            # Opened while no supervisor said anything, and the mount is the same.
            self.generation = current
            return False
        return True

    def is_known_alive(self) -> bool:
        """Whether a supervisor says that the LiteFS that this connection was opened on serves."""
        return self.generation is not None and self.generation == self.node_file.generation()

    def has_lost_its_mount(self) -> bool:
        """As `is_left_behind`, but looks for the mount itself where no supervisor says."""
        return self.is_left_behind() or (self.node_file.generation() is None and self.role() is Role.GONE)

    def check_gone(self, error: sqlite3.Error) -> None:
        """Raises Gone in place of an error of SQLite's, if LiteFS has ended; not for one that a commit has met."""
        if self.role() is Role.GONE:
            raise self.gone(error) from error

    def gone(self, error: sqlite3.Error) -> Gone:
        node = self.place.settings.cluster.node
        return Gone(f"LiteFS on node {node!r} has ended (SQLite: {error}): nothing was written.")

    def check_alive(self) -> None:
        """Raises Reopen, or Gone inside a transaction, when LiteFS is not the one of before."""
        if self.is_left_behind():
            if self.in_transaction:
                raise Gone(
                    f"LiteFS on node {self.place.settings.cluster.node!r} ended during this transaction: "
                    "nothing of it was written."
                )
            raise Reopen("LiteFS has ended meanwhile.")
        if self.is_obsolete and not self.in_transaction:
            raise Reopen("This node's role has changed.")

    def agree_with_role(self) -> None:
        """Raises Reopen when a replica's connection finds that its node may write now."""
        if not self.is_writable and self.role() is Role.PRIMARY:
            raise Reopen("This node has become the primary.")
