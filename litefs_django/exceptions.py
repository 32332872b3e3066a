"""What the database backend raises beside Django's own errors.

OperationalError (django.db)
 +-- NotPrimaryError       a write on a node that is not the primary: nothing was done
 +-- CommitOutcomeUnknown  the database said "committed", but LiteFS went away or lost its role meanwhile
BaseException
 +-- HandOver              in place of an OperationalError, in a request that the middleware can hand over
"""

from __future__ import annotations

from django.db.utils import OperationalError

from litefs_django._litefs.settings import Node


class NotPrimaryError(OperationalError):
    """A write was refused because this node is not the primary. Nothing was written.

    `alias` is the database's alias, `node` this node, `primary` the node that may write, None when
    none is known.
    """

    def __init__(self, message: str, alias: str, node: Node, primary: Node | None) -> None:
        super().__init__(message, alias, node, primary)
        self.alias = alias
        self.node = node
        self.primary = primary

    def __str__(self) -> str:
        return str(self.args[0])


class CommitOutcomeUnknown(OperationalError):
    """A commit may or may not have happened: never retry it blindly. `alias` is the database's alias."""

    def __init__(self, message: str, alias: str) -> None:
        super().__init__(message, alias)
        self.alias = alias

    def __str__(self) -> str:
        return str(self.args[0])


class HandOver(BaseException):
    """Ends a request that this node cannot serve, on its way to the middleware, which hands it over to the primary.

    `refused` is the NotPrimaryError of a write, or the OperationalError that LiteFS's absence has caused.

    Not an Exception: what the project, Django's sessions or signals make of those must not stop it.
    """

    def __init__(self, refused: OperationalError) -> None:
        super().__init__(refused)
        self.refused = refused
