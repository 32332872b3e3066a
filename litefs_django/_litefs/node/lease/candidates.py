"""Which node should win the free lease: one that is behind in no database, if there is one. A preference alone."""

from __future__ import annotations

from collections.abc import Iterable

from litefs_django._litefs.node.lease.transport import Hello, Positions

# Seconds that an acquire waits for a better candidate, at most.
HELD = 0.2


def is_behind(one: Positions, other: Positions) -> bool:
    """Whether `one` lacks transactions of a database that `other` has."""
    return any(one.get(database, 0) < position for database, position in other.items())


def should_wait(mine: Positions, peers: Iterable[Hello], grants: int) -> bool:
    """Whether a reachable node's positions since `grants` leases were granted are not known, or one should win."""
    peers = list(peers)
    if any(peer.grants != grants for peer in peers):
        return True
    known = [peer.positions for peer in peers if peer.positions is not None]
    best = [one for one in known if not any(is_behind(one, other) for other in (*known, mine))]
    return any(is_behind(mine, one) for one in best)
