"""What a history of writes has to be, whatever failed meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.cluster.raft.writers import Outcome, Write

# Seconds for an acknowledged write to reach another node, on a machine that is busy with all of them.
REPLICATION = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`wrong` is what must not be; `lost` are acknowledged writes that are gone."""

    wrong: list[str]
    lost: list[Write]


def judge(writes: Sequence[Write], rows: Sequence[str], failures: Sequence[tuple[float, float]]) -> Verdict:
    """Judges all writes by the rows at the end, in the order in which they were committed.

    `failures` are from when until when something failed that may lose an acknowledged write: LiteFS replicates after
    it has committed.
    """
    place = {name: number for number, name in enumerate(rows)}
    acknowledged = [write for write in writes if write.outcome is Outcome.ACKNOWLEDGED]
    kept = sorted((write for write in acknowledged if write.name in place), key=lambda write: place[write.name])
    lost = [write for write in acknowledged if write.name not in place]
    wrong = [f"there {count} times: {name}" for name, count in Counter(rows).items() if count > 1]
    wrong += [
        f"refused, and there: {write}"
        for write in writes
        if write.outcome in (Outcome.REFUSED, Outcome.UNSENT) and write.name in place
    ]
    wrong += _out_of_order(kept)
    for write in lost:
        # Which node was the primary when it began, by what is kept of those writes that had ended.
        earlier = [other for other in kept if other.ended < write.began]
        if earlier and earlier[-1].by != write.by:
            wrong.append(f"acknowledged by an old primary: {write}, after {earlier[-1]}")
        if not any(began - REPLICATION < write.ended and write.began < ended for began, ended in failures):
            wrong.append(f"lost without a failure: {write}")
    return Verdict(wrong, lost)


def _out_of_order(kept: Sequence[Write]) -> list[str]:
    """A write that had ended before another began was committed before it."""
    wrong = []
    latest: Write | None = None
    for write in kept:
        if latest is not None and write.ended < latest.began:
            wrong.append(f"committed after a later one: {write}, {latest}")
        if latest is None or write.began > latest.began:
            latest = write
    return wrong
