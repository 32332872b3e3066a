"""When a holder can do no more, and when a node may vote: pure, with the time as an argument.

All times are seconds of CLOCK_BOOTTIME, which goes on while a machine is suspended, on the machine that measures
them; none is ever compared with another machine's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from litefs_django._litefs.node.lease.state import Expire, State

# Seconds for Raft to answer: LiteFS's client has no time-out of its own (consul.go:300).
ANSWER = 0.75
# Seconds between two attempts to have the same thing done.
RETRY = 0.1
# Seconds for which nothing may be applied while more is committed, and what one look at it counts at most.
STALLED = 1.0
LOOK = 0.3
# Seconds that a node which is told --bootstrap listens for members that know better.
LISTEN = 3.0
# Seconds after which a node that hears too few is told what to do if the others are lost.
LOST = 30.0


@dataclass(frozen=True, slots=True)
class Times:
    """What follows from LEASE_TTL (`ttl`, seconds; more than 1.2)."""

    ttl: float

    @property
    def guard(self) -> float:
        """Seconds for what clocks, signals and schedulers are late."""
        return max(0.2, self.ttl / 10)

    @property
    def expiry(self) -> float:
        """Seconds after a node has applied a renewal when it takes the holder for unable to act.

        The holder's deadline is TTL after it asked, which was before anybody applied it.
        """
        return self.ttl + self.guard

    @property
    def confirmation(self) -> float:
        """Seconds for a lease to be confirmed: LiteFS renews TTL/2 after the answer (store.go, monitorLeaseAsPrimary),
        and that has to be before `cut_off`.
        """
        return min(ANSWER, self.ttl / 2 - 2 * self.guard)

    @property
    def doubt(self) -> float:
        """Seconds before the deadline at which commits are held off, so that none is under way at the `cut_off`."""
        return 2.25 * self.guard

    def cut_off(self, deadline: float) -> float:
        """When a renewal that is still open is refused, so that LiteFS has left before the deadline."""
        return deadline - 2 * self.guard


class ExpiryTimer:
    """One node's view of how long the lease was not renewed. It restarts with each renewal that the node applies."""

    def __init__(self) -> None:
        self._seen: tuple[int, int] | None = None
        self._since = 0.0
        self._proposed = 0.0

    def observe(self, state: State, now: float, *, is_restored: bool = False) -> None:
        """To be told each state at once when it was applied; `is_restored` when it came as a snapshot."""
        seen = None if state.lease is None else (state.lease.grant, state.lease.count)
        if seen != self._seen or is_restored:
            self._seen, self._since, self._proposed = seen, now, 0.0

    def left(self, state: State, now: float) -> float | None:
        """Seconds until the lease counts as expired, unless it is renewed; None when nobody has it."""
        return None if state.lease is None else max(0.0, self._since + Times(state.lease.ttl).expiry - now)

    def due(self, state: State, now: float) -> Expire | None:
        """What to propose now: nothing most of the time, and not again within RETRY."""
        lease = state.lease
        if lease is None or now < self._since + Times(lease.ttl).expiry or now < self._proposed + RETRY:
            return None
        self._proposed = now
        return Expire(session=lease.session, grant=lease.grant, count=lease.count)


class Progress:
    """Whether a number goes on that should, before `patience` seconds have passed.

    Time is counted from look to look: a process that was stopped is not late when it goes on.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._number = -1
        self._looked = self._waited = 0.0

    def is_stalled(self, number: int, now: float, *, is_due: bool = True) -> bool:
        """To be asked again and again; `is_due` says whether the number has to go on at all."""
        if not is_due or number != self._number:
            self._number, self._waited = number, 0.0
        else:
            self._waited += min(now - self._looked, LOOK)
        self._looked = now
        return self._waited > self._patience


class Admission:
    """Whether a node that has started may vote and campaign: what it may have forgotten must be over first.

    `is_known`: it has voted before, and its Raft file says in which term; `is_bootstrap`: members that do not answer
    are taken for empty; `peers` are the other members' names; `started` is when.
    """

    def __init__(
        self, times: Times, peers: Collection[str], *, is_known: bool, is_bootstrap: bool, started: float
    ) -> None:
        self.is_admitted = False
        self.is_known = is_known
        self.term = 0  # the highest one that a member has said it knows
        self._peers = frozenset(peers)
        self._heard: set[str] = set()
        self._empty: set[str] = set()
        self._is_bootstrap = is_bootstrap
        self._is_brought_up = False
        self._lost_at = started + LOST
        self._listened_at = started + LISTEN
        self._forgotten_at = started + times.expiry

    def heard(self, peer: str, term: int, *, is_known: bool) -> None:
        """A member has said which term it knows, or that it has no Raft file."""
        self._heard.add(peer)
        self.term = max(self.term, term)
        if not is_known and not term:
            # For good: it may begin, and say so, before this one has heard the others.
            self._empty.add(peer)

    def brought_up(self) -> None:
        """A leader has had this node apply a barrier that it asked for after its start."""
        self._is_brought_up = True

    @property
    def is_missed(self) -> bool:
        """Whether it waits for a leader to bring it up."""
        return not self.is_known and not self._is_brought_up

    def may_vote(self, now: float) -> bool:
        """Once true it stays true."""
        self.is_admitted = self.is_admitted or self._decide(now)
        return self.is_admitted

    def _decide(self, now: float) -> bool:
        if self.is_known or self._is_brought_up:
            return now >= self._forgotten_at
        if self._empty >= self._peers:
            return True
        if self._is_bootstrap and self._heard <= self._empty:
            return now >= self._listened_at
        return now >= self._forgotten_at and (self._is_bootstrap or self._heard >= self._peers)

    def describe(self, now: float) -> str:
        """What it waits for, as a sentence."""
        if self.is_admitted:
            return "It votes."
        if self.is_missed and not self._is_bootstrap and (silent := sorted(self._peers - self._heard)):
            awaited = (
                f"It has no Raft file and does not vote before it has heard of a leader, or of {', '.join(silent)}."
            )
            if now < self._lost_at:
                return awaited
            return f"{awaited} If those are lost for good, start it with --bootstrap."
        left = max(self._listened_at if self._is_bootstrap else 0.0, self._forgotten_at) - now
        if left <= 0:
            return "It does not vote before it hears another node."
        return f"It has started and does not vote for another {left:.1f} s."
