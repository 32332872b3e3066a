"""The lease among members that are processes of their own."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pysyncobj.node import TCPNode
from pysyncobj.transport import TCPTransport

from litefs_django._litefs.errors import LeaseError
from litefs_django._litefs.node.lease.files import NAME
from litefs_django._litefs.node.lease.raft import LeaderElection
from litefs_django._litefs.node.lease.state import Barrier, Release, Renew, SetClusterId
from tests.lease.members import TTL, Member, Members
from tests.machine import SECRET, free_ports, wait_until

pytestmark = pytest.mark.cluster

CLUSTER_ID = "LFSC0123456789ABCDEF"


def holder(member: Member) -> str | None:
    lease = member.status()["state"]["lease"]
    return lease["node"] if lease else None


def says(member: Member, text: str) -> bool:
    return text in member.log.read_text()


def reaches(member: Member, count: int) -> bool:
    return len(member.status()["reachable"]) == count


def wait_held_by(members: Members, name: str | None) -> None:
    wait_until(lambda: {holder(member) for member in members} == {name}, f"{name} has the lease", context=members.logs)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_new_members_begin_by_themselves(tmp_path: Path, count: int) -> None:
    # So that no lease expires meanwhile.
    with Members(count, tmp_path, ttl=60.0) as members:
        members.wait_committing()
        first, last = members[0], members[-1]
        assert last.acquire("s1")
        wait_held_by(members, last.name)
        assert count == 1 or not first.acquire("s2")
        assert first.propose(Renew(session="s1", grant=1)) is not None
        assert last.propose(Release(session="s1", grant=1)) is not None
        wait_held_by(members, None)


def test_a_holder_that_does_not_renew_loses_the_lease(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        asked = time.monotonic()
        assert members[0].acquire("s1")
        wait_held_by(members, None)
        assert time.monotonic() - asked >= TTL


def test_a_dead_leader_is_replaced_and_what_was_committed_stays(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        leader = members.leader()
        others = [member for member in members if member is not leader]
        assert others[0].propose(SetClusterId(cluster_id=CLUSTER_ID)) is not None
        leader.kill()
        members.wait_committing(others)
        assert members.leader(others) in others
        assert {member.status()["cluster_id"] for member in others} == {CLUSTER_ID}
        leader.start()
        members.wait_committing()
        assert leader.status()["cluster_id"] == CLUSTER_ID


def test_without_a_majority_nothing_is_granted(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        members[1].kill()
        members[2].kill()
        wait_until(lambda: members[0].status()["leader"] is None, "nobody leads", context=members.logs)
        assert not members[0].acquire("s1")
        assert holder(members[0]) is None
        members[1].start()
        members.wait_committing(members[:2])
        assert members[0].acquire("s2")


def test_all_start_again_and_know_their_cluster_id(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        assert members[0].propose(SetClusterId(cluster_id=CLUSTER_ID)) is not None
        wait_until(lambda: {member.status()["cluster_id"] for member in members} == {CLUSTER_ID}, "all know it")
        term = members[0].status()["term"]
        for member in members:
            member.kill()
        for member in members:
            member.start()
        assert {member.status()["cluster_id"] for member in members} == {CLUSTER_ID}
        members.wait_committing()
        assert members[0].status()["term"] > term
        assert not members[0].acquire("s1")
        assert members[0].acquire("s1", CLUSTER_ID)


@pytest.mark.parametrize("pause", [TTL, 5 * TTL])
def test_stopped_members_go_on_when_they_are_resumed(tmp_path: Path, pause: float) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        leader = members.leader()
        stopped = [member for member in members if member is not leader]
        for member in stopped:
            member.send(signal.SIGSTOP)
        time.sleep(pause)  # what is tested is a pause of that length
        for member in stopped:
            member.send(signal.SIGCONT)
        members.wait_committing()


def test_a_connection_that_leads_nowhere_is_tried_again(tmp_path: Path) -> None:
    """As one to a stopped process, or through a network that drops what it is sent."""
    with closing(socket.socket()) as listener, closing(socket.socket()) as placeholder:
        for bound in (listener, placeholder):
            bound.bind(("127.0.0.1", 0))
        # The member with the greater address connects.
        silent, own = sorted((listener, placeholder), key=lambda bound: f"127.0.0.1:{bound.getsockname()[1]}")
        silent.listen()
        silent.settimeout(100)
        ports = [bound.getsockname()[1] for bound in (own, silent)]
        own.close()
        member = Member("web1", {"web1": f"127.0.0.1:{ports[0]}", "web2": f"127.0.0.1:{ports[1]}"}, tmp_path)
        member.start()
        try:
            connections = [silent.accept()[0] for _ in range(2)]
            for connection in connections:
                connection.close()
        finally:
            member.kill()


def test_a_stopped_leader_is_replaced_and_follows_when_it_is_resumed(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        leader = members.leader()
        others = [member for member in members if member is not leader]
        leader.send(signal.SIGSTOP)
        members.wait_committing(others)
        new, term = members.leader(others), others[0].status()["term"]
        leader.send(signal.SIGCONT)
        members.wait_committing()
        assert members.leader() is new, members.logs()
        assert leader.status()["term"] == term, "the one that came back has deposed the new leader"


def test_one_that_knows_what_the_others_have_forgotten_starts_anew(tmp_path: Path) -> None:
    """Its log begins after all that the others have: nothing that they send contradicts it, or fits."""
    with Members(3, tmp_path) as members:
        members.wait_committing()
        ahead, *others = members
        for _ in range(20):
            assert ahead.propose(Barrier())
        ahead.compact()
        ahead.send(signal.SIGSTOP)
        for member in others:
            member.kill()
            member.start()
        members.wait_committing(others)
        ahead.send(signal.SIGCONT)
        assert ahead.wait() == 1
        assert "starts anew" in ahead.log.read_text()
        ahead.kill()
        ahead.start()
        members.wait_committing()


class Follower:
    """web1 of three, in this process: it hears what it is told here, and its answers go nowhere."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        members = {f"web{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(3), start=1)}
        self.raft = LeaderElection("web1", members, secrets=[SECRET], ttl=TTL, directory=directory)._raft
        self.answers: list[dict[str, Any]] = []
        monkeypatch.setattr(TCPTransport, "send", lambda transport, node, message: self.answers.append(message))
        self.old, self.new = sorted(self.raft.otherNodes, key=lambda node: node.address)
        self.raft.transport.greeted.update((self.old, self.new))

    def hear(self, leader: TCPNode, term: int, **message: Any) -> dict[str, Any] | None:
        """What is answered, if anything is."""
        self.answers.clear()
        self.raft.transport._onMessageReceived(leader, {"type": "append_entries", "term": term, **message})
        return self.answers[0] if self.answers else None

    def append(
        self, leader: TCPNode, term: int, before: tuple[int, int], *entries: tuple[int, int], committed: int = 1
    ) -> dict[str, Any] | None:
        parts = {"prevLogIdx": before[0], "prevLogTerm": before[1], "commit_index": committed}
        return self.hear(leader, term, entries=[(b"\x01", *entry) for entry in entries], **parts)


@pytest.fixture
def follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follower]:
    found = Follower(tmp_path, monkeypatch)
    yield found
    found.raft.destroy()


def refusal(term: int, next_index: int) -> dict[str, Any]:
    return {"type": "next_node_idx", "term": term, "next_node_idx": next_index, "reset": True, "success": False}


def test_a_leader_goes_back_at_once_whatever_is_on_its_way(follower: Follower) -> None:
    """Where an answer takes longer than the time between two messages."""
    old, new = follower.old, follower.new
    follower.append(old, 1, (1, 0), (2, 1), (3, 1), (4, 1), (5, 1), committed=3)
    for index in (9, 5, 8, 4):
        assert follower.append(new, 2, (index, 2)) == refusal(2, 4)
    done = follower.append(new, 2, (3, 1), *((index, 2) for index in range(4, 10)))
    assert done == {**refusal(2, 10), "reset": False, "success": True}


def test_a_leader_goes_on_after_a_snapshot_that_is_ahead_of_what_is_known_to_be_committed(follower: Follower) -> None:
    follower.raft._SyncObj__raftLastApplied = 7
    assert follower.append(follower.new, 2, (20, 2)) == refusal(2, 8)


def test_a_leader_of_before_that_contradicts_what_was_applied_ends_nothing(follower: Follower) -> None:
    old, new = follower.old, follower.new
    follower.append(new, 2, (1, 0), (2, 2), (3, 2), committed=3)
    follower.raft.doTick()
    assert follower.raft.raftLastApplied == 3
    assert follower.append(old, 1, (3, 1)) is None
    with pytest.raises(LeaseError, match="lost what this one has applied"):
        follower.append(old, 3, (3, 1))


def test_an_answer_to_a_leader_of_another_term_is_not_heard(follower: Follower) -> None:
    term = follower.raft.raftCurrentTerm
    assert [follower.raft.transport._is_welcome(refusal(term + later, 1)) for later in (0, 1)] == [True, False]


def test_refusals_are_counted_for_one_connection(follower: Follower) -> None:
    follower.append(follower.new, 1, (20, 1))
    assert follower.raft.transport.refused == 1
    follower.raft.transport._onNodeDisconnected(follower.new)
    assert follower.raft.transport.refused == 0


def test_a_snapshot_that_cannot_be_read_ends_it(follower: Follower) -> None:
    """One of another release, say: PySyncObj itself only logs it."""
    whole = {"commit_index": 9, "serialized": (b"not a snapshot", True, False)}
    assert follower.hear(follower.new, 1, **whole) is None
    with pytest.raises(LeaseError, match="of another release"):
        follower.hear(follower.new, 1, **{**whole, "serialized": (b"", False, True)})


def test_one_grows_to_three(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.clean_up()
        for member in members:
            (member.directory / NAME).unlink(missing_ok=True)
        first = members[0]
        first.start(members={first.name: members.addresses[first.name]})
        members.wait_committing([first])
        assert first.propose(SetClusterId(cluster_id=CLUSTER_ID)) is not None
        first.kill()
        for member in members:
            member.start()
        members.wait_committing()
        assert {member.status()["cluster_id"] for member in members} == {CLUSTER_ID}
        assert not members[1].acquire("s1"), "its LiteFS was told no cluster id, and has no data"


def test_a_member_that_has_lost_its_disk_comes_back(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        lost, other = members[0], members[1]
        lost.kill()
        (lost.directory / NAME).unlink()
        members.wait_committing(members[1:])
        lost.start()
        wait_until(lambda: lost.status()["votes"] == "It votes.", "it votes", context=members.logs)
        other.kill()
        members.wait_committing([lost, members[2]])


def test_a_member_that_has_lost_its_disk_does_not_make_a_majority(tmp_path: Path) -> None:
    """The third one may know more. Told --bootstrap, it takes that for lost."""
    with Members(3, tmp_path) as members:
        members.wait_committing()
        members.clean_up()
        lost = members[1]
        (lost.directory / NAME).unlink()
        members[0].start()
        lost.start()
        wait_until(lambda: members[0].status()["votes"] == "It votes.", "the first one votes", context=members.logs)
        assert "heard of a leader, or of web3" in lost.status()["votes"]
        assert not members[0].is_committing()
        lost.kill()
        lost.start(is_bootstrap=True)
        members.wait_committing(members[:2])


def test_members_that_disagree_do_not_talk_and_say_why(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        odd = members[2]
        cases: list[tuple[dict[str, Any], str]] = [
            ({"ttl": 2.5}, 'LITEFS["LEASE_TTL"] is 2.5 s there, 1.3 s here'),
            ({"members": members.addresses | {"web4": "127.0.0.1:9", "web5": "127.0.0.1:10"}}, "web4, web5"),
        ]
        for options, complaint in cases:
            odd.kill()
            odd.start(**options)
            wait_until(partial(says, members[0], complaint), complaint, context=members.logs)
            assert odd.name not in members[0].status()["reachable"]
            assert f"No talk with {members[0].name}" in odd.log.read_text()
        members.wait_committing(members[:2])


def test_secrets_are_exchanged_one_member_at_a_time(tmp_path: Path) -> None:
    new = "another one, and long enough as well"
    with Members(3, tmp_path) as members:
        members.wait_committing()
        for secrets in ([SECRET, new], [new, SECRET], [new]):
            for member in members:
                member.kill()
                member.start(secrets=secrets)
                wait_until(partial(reaches, member, 3), "it is back", context=members.logs)
        members.wait_committing()


def test_a_stranger_is_not_heard(tmp_path: Path) -> None:
    with Members(3, tmp_path) as members:
        members.wait_committing()
        members[2].kill()
        members[2].start(secrets=["another one, and long enough as well"])
        assert members[2].propose(Renew(session="s", grant=1), timeout=2.0) is None
        assert members[2].status()["reachable"] == [members[2].name]
        members.wait_committing(members[:2])


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with Members(1, tmp_path) as members:
        members.wait_committing()
        second = Member("web1", members.addresses, tmp_path / "second")
        second.log.parent.mkdir()
        second.start()
        assert second.wait() == 1
        assert "RAFT_PORT is in use" in second.log.read_text()
        second.kill()


def test_a_damaged_file_ends_it(tmp_path: Path) -> None:
    with Members(1, tmp_path) as members:
        members.wait_committing()
        (only,) = members
        only.kill()
        (only.directory / NAME).write_text("{")
        only.start()
        assert only.wait() == 1
        assert "is damaged" in only.log.read_text()
