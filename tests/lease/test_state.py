"""The lease's states, against a plain model of a cluster that loses, repeats, delays and forgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from litefs_django._litefs.node.lease.state import (
    VERSION,
    Acquire,
    Applied,
    Barrier,
    Command,
    Expire,
    Lease,
    Release,
    Renew,
    SetClusterId,
    Start,
    State,
    Take,
    apply,
    decode,
    decode_state,
    encode,
    encode_state,
)
from litefs_django._litefs.node.lease.timing import ExpiryTimer, Times

TTL = 3.0
TIMES = Times(TTL)
NODES = ("web1", "web2", "web3")


def acquire(node: str = "web1", session: str = "s1", after: int = 0, cluster_id: str = "") -> Acquire:
    return Acquire(session=session, node=node, value=f"{node}'s", ttl=TTL, after=after, cluster_id=cluster_id)


def run(*commands: Command, state: State | None = None) -> Applied:
    """What the last of the commands did."""
    applied = Applied(False, state or State())
    for command in commands:
        applied = apply(applied.state, encode(command))
    return applied


HELD = run(acquire()).state


def test_the_free_lease_is_granted_once() -> None:
    applied = run(acquire())
    assert applied.is_done
    assert applied.state.lease is not None
    assert (applied.state.lease.node, applied.state.lease.value, applied.state.lease.grant) == ("web1", "web1's", 1)
    assert run(acquire("web2", "s2"), state=HELD) == Applied(False, HELD)
    assert run(acquire("web2", "s2", after=1), state=HELD) == Applied(False, HELD)
    assert run(acquire(), state=HELD) == Applied(False, HELD)


def test_an_acquire_that_comes_late_does_nothing() -> None:
    """It was asked while the lease was free, and its node has given up since."""
    free = run(acquire(), Release(session="s1", grant=1)).state
    assert not run(acquire("web2", "s2", after=0), state=free).is_done
    assert run(acquire("web2", "s2", after=1), state=free).is_done


def test_a_node_that_was_told_no_cluster_id_does_not_become_the_primary_of_a_cluster_that_has_one() -> None:
    state = run(SetClusterId(cluster_id="LFSC1")).state
    assert not run(acquire(), state=state).is_done
    assert not run(acquire(cluster_id="LFSC2"), state=state).is_done
    assert run(acquire(cluster_id="LFSC1"), state=state).is_done
    assert run(acquire(cluster_id="LFSC1")).state.cluster_id == "LFSC1"


def test_the_cluster_id_is_set_once() -> None:
    first = run(SetClusterId(cluster_id="LFSC1"))
    assert first.is_done
    assert run(SetClusterId(cluster_id="LFSC1"), state=first.state) == first
    assert run(SetClusterId(cluster_id="LFSC2"), state=first.state) == Applied(False, first.state)
    assert not run(SetClusterId(cluster_id="")).is_done


@pytest.mark.parametrize("grant", [1, 2])
def test_what_is_meant_for_another_grant_does_nothing(grant: int) -> None:
    """A release or a renewal of the time before the session was handed away and back again."""
    state = run(
        Take(session="s1", node="web2", value="", ttl=TTL, grant=1),
        Take(session="s1", node="web1", value="", ttl=TTL, grant=2),
        state=HELD,
    ).state
    for command in (
        Release(session="s1", grant=grant),
        Renew(session="s1", grant=grant),
        Expire(session="s1", grant=grant, count=0),
        Take(session="s1", node="web3", value="", ttl=TTL, grant=grant),
    ):
        assert run(command, state=state) == Applied(False, state)
    assert run(Release(session="s1", grant=3), state=state).state.lease is None


def test_a_release_by_a_session_that_does_not_hold_the_lease_changes_nothing() -> None:
    """A losing candidate sends one right after its failed acquire (consul.go, Acquire)."""
    assert run(Release(session="s2", grant=1), state=HELD) == Applied(False, HELD)
    assert run(Release(session="s1", grant=1)) == Applied(False, State())


def test_a_lease_that_was_renewed_meanwhile_does_not_expire() -> None:
    renewed = run(Renew(session="s1", grant=1), state=HELD).state
    assert run(Expire(session="s1", grant=1, count=0), state=renewed) == Applied(False, renewed)
    assert run(Expire(session="s1", grant=1, count=1), state=renewed).state.lease is None


def test_a_renewal_that_comes_after_the_expiry_brings_nothing_back() -> None:
    expired = run(Expire(session="s1", grant=1, count=0), state=HELD).state
    assert run(Renew(session="s1", grant=1), state=expired) == Applied(False, expired)


def test_a_session_that_is_handed_on_keeps_its_id_under_a_new_grant() -> None:
    taken = run(Take(session="s1", node="web2", value="web2's", ttl=5.0, grant=1), state=HELD)
    lease = taken.state.lease
    assert taken.is_done
    assert lease is not None
    assert (lease.session, lease.node, lease.value, lease.ttl, lease.grant) == ("s1", "web2", "web2's", 5.0, 2)
    assert not run(Take(session="s1", node="web2", value="", ttl=TTL, grant=1)).is_done


def test_a_barrier_shows_the_state() -> None:
    assert run(Barrier(), state=HELD) == Applied(True, HELD)


names = st.text(max_size=3)
numbers = st.integers(-1, 4)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Acquire, session=names, node=names, value=names, ttl=st.just(TTL), after=numbers, cluster_id=names),
    st.builds(Take, session=names, node=names, value=names, ttl=st.just(TTL), grant=numbers),
    st.builds(Renew, session=names, grant=numbers),
    st.builds(Release, session=names, grant=numbers),
    st.builds(Expire, session=names, grant=numbers, count=numbers),
    st.builds(SetClusterId, cluster_id=names),
    st.just(Barrier()),
)


@given(commands)
def test_commands_arrive_as_they_were_sent(command: Command) -> None:
    assert decode(encode(command)) == command


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


@given(command=commands, data=st.data())
def test_anything_else_changes_nothing(command: Command, data: st.DataObject) -> None:
    fields = json.loads(encode(command))
    changed = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(json_values.filter(lambda value: type(value) is not type(fields[changed]) and value != 1))
    for text in (
        json.dumps(fields | {changed: value}),
        json.dumps({name: kept for name, kept in fields.items() if name != changed}),
        json.dumps(fields | {"more": 1}),
        json.dumps(fields | {"version": VERSION + 1}),
        json.dumps(value),
    ):
        assert apply(HELD, text) == Applied(False, HELD)


@given(st.text() | st.integers(1, 10**5).map(lambda depth: "[" * depth))
def test_no_text_makes_it_fail(text: str) -> None:
    assert apply(HELD, text) == Applied(False, HELD)


def test_a_snapshot_holds_the_whole_state() -> None:
    for state in (State(), HELD, run(acquire(cluster_id="LFSC1"), Renew(session="s1", grant=1)).state):
        assert decode_state(encode_state(state)) == state


def test_a_snapshot_of_another_version_is_refused() -> None:
    text = json.dumps(json.loads(encode_state(HELD)) | {"version": 2})
    with pytest.raises(ValueError, match="version 2, and this release knows version 1"):
        decode_state(text)


# What version 1 looks like on the wire: nodes of another release send and read it.
OLD: dict[str, Command] = {
    '{"version": 1, "command": "Acquire", "session": "s1", "node": "web1", "value": "v", "ttl": 3.0, "after": 0, '
    '"cluster_id": "", "positions": {"db": "07/ab"}}': Acquire(
        session="s1", node="web1", value="v", ttl=3.0, after=0, cluster_id="", positions={"db": "07/ab"}
    ),
    '{"version": 1, "command": "Renew", "session": "s1", "grant": 1}': Renew(session="s1", grant=1),
    '{"version": 1, "command": "Expire", "session": "s1", "grant": 1, "count": 4}': Expire(
        session="s1", grant=1, count=4
    ),
}


def test_the_wire_format_stays() -> None:
    assert {encode(command): command for command in OLD.values()} == OLD
    found = decode_state(
        '{"version": 1, "cluster_id": "", "grants": 2, "lease": null, "starts": '
        '[{"grant": 2, "node": "web1", "positions": {"db": "07/ab"}}]}'
    )
    assert found == State(grants=2)
    assert found.starts == (Start(grant=2, node="web1", positions={"db": "07/ab"}),)


@dataclass
class Member:
    """A node of the model: its log is the first `stored` entries of the cluster's, `applied` of them applied."""

    stored: int
    applied: int
    state: State
    timer: ExpiryTimer
    votes_at: float


@dataclass(frozen=True)
class Proposal:
    command: Command
    asked: float


names_of_nodes = st.sampled_from(NODES)
# Beside the leader: it is one of them, in the third of the cases.
quorums = st.sampled_from([NODES[:2], NODES[1:], NODES[::2], NODES])
delays = st.sampled_from([0, 0, 1, 2])


class Cluster(RuleBasedStateMachine):
    """Three nodes whose log is in memory: one that starts has none of it, and neither votes nor campaigns at first.

    A holder can act from when its acquire is committed until TTL after it asked for the last of its acquire and
    renewals that was committed, or until it has said that it has left; whatever the cluster forgets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.log: list[Proposal] = []
        self.proposals: list[Proposal] = []
        self.members = {name: self.started(votes_at=0.0) for name in NODES}
        self.leader: str | None = NODES[0]
        self.acts_until: dict[tuple[str, int], float] = {}
        self.sessions = 0

    def started(self, votes_at: float) -> Member:
        return Member(0, 0, State(), ExpiryTimer(), votes_at)

    @initialize()
    def begin(self) -> None:
        self.ask(NODES[0], 0, NODES)

    @property
    def holder(self) -> Lease | None:
        """As the leader has it."""
        return self.members[self.leader].state.lease if self.leader else None

    @precondition(lambda self: self.holder is None)
    @rule(name=names_of_nodes, delay=delays, quorum=quorums)
    def ask(self, name: str, delay: int, quorum: Sequence[str]) -> None:
        """A node's LiteFS wants the lease, as far as the node knows what is true."""
        state = self.members[name].state
        if state.lease is None:
            self.sessions += 1
            self.propose(acquire(name, f"s{self.sessions}", state.grants), delay, quorum)

    @precondition(lambda self: self.holder is not None)
    @rule(delay=delays, quorum=quorums)
    def renew(self, delay: int, quorum: Sequence[str]) -> None:
        lease = self.holder
        assert lease is not None
        self.propose(Renew(session=lease.session, grant=lease.grant), delay, quorum)

    @precondition(lambda self: self.holder is not None)
    @rule(to=names_of_nodes, is_handed=st.booleans(), delay=delays, quorum=quorums)
    def leave(self, to: str, is_handed: bool, delay: int, quorum: Sequence[str]) -> None:
        """The holder's LiteFS stops being primary; it has handed its session on, or not."""
        lease = self.holder
        assert lease is not None
        self.acts_until[lease.session, lease.grant] = self.now
        if is_handed:
            take = Take(session=lease.session, node=to, value=f"{to}'s", ttl=TTL, grant=lease.grant)
            self.propose(take, delay, quorum)
        else:
            self.propose(Release(session=lease.session, grant=lease.grant), delay, quorum)

    @rule(seconds=st.sampled_from([2 * TIMES.guard, TTL / 2, TIMES.expiry]), delay=delays, quorum=quorums)
    def wait(self, seconds: float, delay: int, quorum: Sequence[str]) -> None:
        self.now += seconds
        for member in self.members.values():
            if command := member.timer.due(member.state, self.now):
                self.propose(command, delay, quorum)

    def propose(self, command: Command, delay: int, quorum: Sequence[str]) -> None:
        """`delay`: 0 commits it at once, 1 does so and again later, 2 only later, if at all."""
        proposal = Proposal(command, self.now)
        if delay > 0:
            self.proposals.append(proposal)
        if delay < 2:
            self.commit(proposal, quorum)

    @precondition(lambda self: self.proposals)
    @rule(index=st.integers(0, 20), quorum=quorums)
    def commit_later(self, index: int, quorum: Sequence[str]) -> None:
        self.commit(self.proposals.pop(index % len(self.proposals)), quorum)

    def commit(self, proposal: Proposal, quorum: Sequence[str]) -> None:
        """The leader and those others store the proposal; without a leader it is lost."""
        if self.leader is None:
            return
        self.log.append(proposal)
        for name in {self.leader, *quorum}:
            self.members[name].stored = len(self.log)
        self.catch_up(self.leader, len(self.log))
        self.check(proposal)

    def check(self, proposal: Proposal) -> None:
        """What the last entry makes true of the world outside."""
        assert self.leader is not None
        lease = self.members[self.leader].state.lease
        match proposal.command:
            case Acquire(session=session) | Take(session=session) if lease and lease.session == session:
                holder = (session, lease.grant)
                if holder not in self.acts_until:
                    others = {other: until for other, until in self.acts_until.items() if other != holder}
                    assert all(until <= self.now for until in others.values()), "an earlier holder can still act"
                    self.acts_until[holder] = proposal.asked + TTL
            case Renew(session=session, grant=grant) if lease and (lease.session, lease.grant) == (session, grant):
                # One that has left does not come back for a renewal that was under way.
                if self.acts_until[session, grant] > proposal.asked:
                    self.acts_until[session, grant] = max(self.acts_until[session, grant], proposal.asked + TTL)

    @precondition(lambda self: self.leader is not None)
    @rule(name=names_of_nodes)
    def follow(self, name: str) -> None:
        self.members[name].stored = len(self.log)
        self.catch_up(name, len(self.log))

    def catch_up(self, name: str, to: int) -> None:
        member = self.members[name]
        for proposal in self.log[member.applied : to]:
            member.state = apply(member.state, encode(proposal.command)).state
            member.timer.observe(member.state, self.now)
        member.applied = max(member.applied, to)

    @rule(name=names_of_nodes)
    def restart(self, name: str) -> None:
        self.members[name] = self.started(votes_at=self.now + TIMES.expiry)
        self.leader = None if self.leader == name else self.leader

    @rule(name=names_of_nodes, voter=names_of_nodes)
    def elect(self, name: str, voter: str) -> None:
        """Needs two who vote, and no voter whose log is longer. What the new leader does not have is forgotten."""
        pair = [self.members[name], self.members[voter]]
        if name == voter or any(self.now < member.votes_at for member in pair) or pair[1].stored > pair[0].stored:
            return
        self.leader = name
        length = self.members[name].stored
        del self.log[length:]
        for other, member in self.members.items():
            member.stored = min(member.stored, length)
            if member.applied > length:
                self.restart(other)  # it has applied what is no more, and ends itself

    @invariant()
    def one_holder(self) -> None:
        assert sum(until > self.now for until in self.acts_until.values()) <= 1

    @invariant()
    def states_agree(self) -> None:
        """Whoever has applied the same entries has the same state."""
        by_applied: dict[int, State] = {}
        for member in self.members.values():
            assert by_applied.setdefault(member.applied, member.state) == member.state


Cluster.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_no_history_has_two_holders: Any = Cluster.TestCase
del Cluster


class Voter:
    """One node's timer beside the states that it applies."""

    def __init__(self) -> None:
        self.timer = ExpiryTimer()
        self.state = State()

    def apply(self, command: Command, now: float) -> None:
        self.state = apply(self.state, encode(command)).state
        self.timer.observe(self.state, now)

    def due(self, now: float) -> Expire | None:
        return self.timer.due(self.state, now)


def test_a_voter_that_lags_does_not_end_a_lease_that_was_renewed() -> None:
    """M has not seen the renewal that A and F have committed at 1.5: what it proposes at 3.3 changes nothing."""
    lagging = Voter()
    lagging.apply(acquire(), 0.0)
    assert lagging.due(TTL + 0.29) is None
    expire = lagging.due(TTL + 0.31)
    assert expire is not None
    renewed = run(Renew(session="s1", grant=1), state=HELD).state
    assert run(expire, state=renewed) == Applied(False, renewed)


@pytest.mark.parametrize("wait", [lambda voter: voter.apply(Renew(session="s1", grant=1), 3.0), lambda voter: None])
def test_a_timer_counts_from_when_its_node_applied_the_last_renewal(wait: Callable[[Voter], None]) -> None:
    voter = Voter()
    voter.apply(acquire(), 0.0)
    wait(voter)
    renewals = voter.state.lease.count if voter.state.lease else 0
    assert (voter.due(3.31) is None) == (renewals == 1)
    assert voter.due(6.31) == Expire(session="s1", grant=1, count=renewals)


def test_a_state_from_a_snapshot_counts_from_then() -> None:
    voter = Voter()
    voter.apply(acquire(), 0.0)
    voter.timer.observe(voter.state, 3.0, is_restored=True)
    assert voter.due(6.29) is None
    assert voter.due(6.31) is not None


def test_what_is_due_is_not_proposed_with_each_look() -> None:
    voter = Voter()
    voter.apply(acquire(), 0.0)
    assert [voter.due(now) is not None for now in (3.31, 3.35, 3.40, 3.42)] == [True, False, False, True]


def test_a_lease_is_timed_by_its_own_ttl() -> None:
    voter = Voter()
    voter.apply(replace(acquire(), ttl=10.0), 0.0)
    assert voter.due(10.9) is None
    assert voter.due(11.1) is not None
