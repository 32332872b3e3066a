"""Which node answered a page, for its footer."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from django.http import HttpRequest

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import PrimaryDetector
from litefs_django._litefs.settings import Node
from litefs_django.conf import get_settings, is_enabled


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """This node at the time of one request.

    `role` is "primary", "replica", "off" (LiteFS is not in use) or "down" (it does not answer).
    `primary` is the node that a replica follows. `txid` is the database's position as LiteFS
    writes it, `lag` the seconds since a replica was last up to date (0 on the primary); None: not known.
    """

    name: str
    role: str
    primary: str | None = None
    txid: str | None = None
    lag: float | None = None


def status() -> NodeStatus:
    """What LiteFS says of this node now."""
    if not is_enabled():
        return NodeStatus(socket.gethostname(), "off")
    settings = get_settings()
    name = settings.cluster.node
    database = settings.databases[0].name
    detector = PrimaryDetector(settings.mount_path)
    try:
        position = detector.position(database)
        txid = f"{position.txid:016x}" if position else None
        role = "primary" if detector.is_primary(database) else "replica"
        return NodeStatus(name, role, detector.primary_name(), txid, detector.lag())
    except MountError:
        return NodeStatus(name, "down")


def all_nodes() -> tuple[Node, ...]:
    """The nodes of the cluster; none when LiteFS is not in use."""
    return get_settings().cluster.nodes if is_enabled() else ()


def context(request: HttpRequest) -> dict[str, object]:
    """A context processor: callables, so that a template without a footer reads nothing."""
    return {"node": status, "all_nodes": all_nodes}
