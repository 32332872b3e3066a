"""When a node that has started may vote."""

from __future__ import annotations

import pytest

from litefs_django._litefs.node.lease.timing import LISTEN, LOOK, LOST, STALLED, Admission, Progress, Times

TIMES = Times(3.0)
PEERS = ("web2", "web3")
START = 1000.0
FORGOTTEN = START + TIMES.expiry


def admission(*, is_known: bool = False, is_bootstrap: bool = False, peers: tuple[str, ...] = PEERS) -> Admission:
    return Admission(TIMES, peers, is_known=is_known, is_bootstrap=is_bootstrap, started=START)


@pytest.mark.parametrize(("ttl", "guard"), [(1.3, 0.2), (3.0, 0.3), (10.0, 1.0)])
def test_a_lease_leaves_time_to_be_confirmed_and_to_leave(ttl: float, guard: float) -> None:
    times = Times(ttl)
    assert times.guard == pytest.approx(guard)
    assert times.expiry > ttl
    assert times.cut_off(ttl) < ttl - times.guard
    # LiteFS asks for the next renewal TTL/2 after the answer, and that is before the last moment to refuse it.
    assert 0 < times.confirmation + ttl / 2 <= times.cut_off(ttl)


def test_a_known_node_votes_when_what_it_may_have_forgotten_is_over() -> None:
    known = admission(is_known=True)
    known.heard("web2", 5, is_known=True)
    known.brought_up()
    assert not known.may_vote(FORGOTTEN - 0.01)
    assert known.may_vote(FORGOTTEN)


def test_the_first_nodes_begin_once_all_have_said_that_they_are_empty() -> None:
    first = admission()
    first.heard("web2", 0, is_known=False)
    assert not first.may_vote(START)
    first.heard("web3", 0, is_known=False)
    assert first.may_vote(START)


def test_one_that_begins_first_does_not_keep_the_others_waiting() -> None:
    second = admission()
    second.heard("web2", 0, is_known=False)
    second.heard("web2", 1, is_known=True)
    second.heard("web3", 0, is_known=False)
    assert second.may_vote(START)


def test_a_node_alone_begins_at_once() -> None:
    assert admission(peers=()).may_vote(START)


def test_a_node_without_a_file_waits_for_a_leader_while_a_member_is_silent() -> None:
    """The silent one may know what it has voted for."""
    replaced = admission()
    replaced.heard("web2", 7, is_known=True)
    assert not replaced.may_vote(FORGOTTEN + 1000)
    assert replaced.describe(START).endswith("does not vote before it has heard of a leader, or of web3.")
    assert "--bootstrap" in replaced.describe(START + LOST)
    replaced.brought_up()
    assert replaced.may_vote(FORGOTTEN)


def test_a_leader_does_not_shorten_what_may_be_forgotten() -> None:
    replaced = admission()
    replaced.heard("web2", 7, is_known=True)
    replaced.brought_up()
    assert not replaced.may_vote(FORGOTTEN - 0.01)


def test_new_nodes_beside_one_that_was_alone_vote_when_all_have_answered() -> None:
    added = admission()
    added.heard("web2", 0, is_known=False)
    added.heard("web3", 7, is_known=True)
    assert not added.may_vote(FORGOTTEN - 0.01)
    assert added.may_vote(FORGOTTEN)
    assert added.term == 7


def test_bootstrap_takes_who_does_not_answer_for_empty() -> None:
    first = admission(is_bootstrap=True)
    first.heard("web2", 0, is_known=False)
    assert not first.may_vote(START + LISTEN - 0.01)
    assert first.may_vote(START + LISTEN)


def test_bootstrap_does_not_overrule_a_member_that_knows_better() -> None:
    first = admission(is_bootstrap=True)
    first.heard("web2", 7, is_known=True)
    assert not first.may_vote(FORGOTTEN - 0.01)
    assert "does not vote for another 3.3 s" in first.describe(START)
    assert first.may_vote(FORGOTTEN)


def test_a_node_that_hears_nobody_says_so() -> None:
    assert "for another 3.3 s" in admission(is_known=True).describe(START)
    assert admission(is_known=True).describe(FORGOTTEN) == "It does not vote before it hears another node."


def test_who_votes_does_not_stop_to() -> None:
    first = admission()
    for peer in PEERS:
        first.heard(peer, 0, is_known=False)
    assert first.may_vote(START)
    first.heard("web2", 1, is_known=True)
    assert first.may_vote(START)
    assert first.describe(START) == "It votes."


def test_what_goes_on_is_not_stalled_though_there_is_always_more() -> None:
    progress = Progress(STALLED)
    assert not any(progress.is_stalled(number, START + number * 0.9 * STALLED) for number in range(9))


def test_what_does_not_go_on_is_stalled_if_it_should() -> None:
    progress = Progress(STALLED)
    looks = [progress.is_stalled(4, START + number * LOOK) for number in range(6)]
    assert looks == [False] * 4 + [True] * 2
    assert not progress.is_stalled(4, START + 6 * LOOK, is_due=False)


def test_a_process_that_was_stopped_is_not_stalled_when_it_goes_on() -> None:
    progress = Progress(STALLED)
    assert not any(progress.is_stalled(5, START + number * 100) for number in range(4))
