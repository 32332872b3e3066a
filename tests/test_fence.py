"""What ends a primary before its lease does. The mount and LiteFS are stand-ins, so that they hang when they should;
with real ones: tests/cluster/raft.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from litefs_django._litefs.node.fence import Fence
from litefs_django._litefs.node.gates import CommitGates
from litefs_django._litefs.node.lease.timing import Times
from litefs_django._litefs.node_file import LeaseWords, NodeFileWriter, boottime_ns
from litefs_django._litefs.write_turn import FileLock, gate_path
from tests.machine import wait_until

TTL = 1.5
TIMES = Times(TTL)


class Fenced:
    """A node file, a gate, and a LiteFS that does as it is told."""

    def __init__(self, run_path: Path) -> None:
        self.writer = NodeFileWriter(run_path)
        self.lease = LeaseWords(run_path)
        self.is_silent, self.is_over = threading.Event(), threading.Event()
        self.lease.beat()
        self._beating = threading.Thread(target=self._beat)
        self._beating.start()
        self.gate = FileLock(gate_path(run_path, "db"))
        self.said: list[str] = []
        self.is_primary: Callable[[], bool] = lambda: True
        self.seems_primary = False
        self.killed_at: list[int] = []
        self.fence = Fence(
            TTL,
            CommitGates(run_path, ["db"]),
            self.writer,
            is_primary=lambda: self.is_primary(),
            seems_primary=lambda: self.seems_primary,
            kill=lambda: self.killed_at.append(boottime_ns()),
            say=self.said.append,
        )

    def _beat(self) -> None:
        while not self.is_over.wait(0.02):
            if not self.is_silent.is_set():
                self.lease.beat()

    def close(self) -> None:
        self.fence.stop()
        self.is_over.set()
        self._beating.join()
        self.writer.close()

    def grant(self, seconds: float = TTL) -> float:
        """The deadline, in seconds of CLOCK_BOOTTIME."""
        until = boottime_ns() / 1e9 + seconds
        self.lease.set_deadline(until)
        return until

    def may_commit(self) -> bool:
        is_free = self.gate.acquire(0)
        self.gate.release()
        return is_free

    def wait_for_end(self, until: float) -> None:
        wait_until(lambda: boottime_ns() / 1e9 > until + 0.2, "the lease is over")


@pytest.fixture
def fenced(tmp_path: Path) -> Iterator[Fenced]:
    found = Fenced(tmp_path)
    yield found
    found.close()


def test_nothing_is_done_while_the_lease_is_renewed(fenced: Fenced) -> None:
    until = boottime_ns() / 1e9 + 2 * TTL
    while boottime_ns() / 1e9 < until:
        fenced.grant()
        assert fenced.may_commit()
        threading.Event().wait(0.05)
    assert fenced.said == []
    assert fenced.killed_at == []


def test_a_litefs_that_does_not_leave_is_killed_before_its_lease_ends(fenced: Fenced) -> None:
    until = fenced.grant()
    wait_until(lambda: not fenced.may_commit(), "commits are held off")
    assert boottime_ns() / 1e9 < until - TIMES.guard
    wait_until(lambda: fenced.killed_at, "LiteFS is killed")
    assert fenced.killed_at[0] / 1e9 < until
    assert "LiteFS has not left before the end of its lease: it is killed" in fenced.said
    # Once, and then nobody is held off any more: there is no lease.
    fenced.wait_for_end(until)
    wait_until(fenced.may_commit, "the gates are given back")
    assert len(fenced.killed_at) == 1


def test_a_mount_that_hangs_is_that_of_a_primary(fenced: Fenced) -> None:
    over = threading.Event()
    fenced.is_primary = lambda: over.wait(60)
    until = fenced.grant()
    wait_until(lambda: fenced.killed_at, "LiteFS is killed")
    assert fenced.killed_at[0] / 1e9 < until
    over.set()


def test_one_that_has_left_lives(fenced: Fenced) -> None:
    fenced.is_primary = lambda: False
    until = fenced.grant()
    wait_until(lambda: not fenced.may_commit(), "commits are held off")
    fenced.wait_for_end(until)
    wait_until(fenced.may_commit, "the gates are given back")
    assert fenced.killed_at == []


def test_one_that_was_renewed_at_the_last_moment_lives(fenced: Fenced) -> None:
    def is_primary() -> bool:
        fenced.grant(60)
        return True

    fenced.is_primary = is_primary
    until = fenced.grant()
    fenced.wait_for_end(until)
    wait_until(fenced.may_commit, "the gates are given back")
    assert fenced.killed_at == []


def test_a_commit_that_does_not_end_holds_nothing_up(fenced: Fenced) -> None:
    """It hangs in a LiteFS that was stopped."""
    assert fenced.gate.acquire(0)
    until = fenced.grant()
    wait_until(lambda: fenced.killed_at, "LiteFS is killed")
    assert fenced.killed_at[0] / 1e9 < until
    fenced.gate.release()


def test_without_file_descriptors_or_threads_litefs_is_killed_all_the_same(
    fenced: Fenced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has no more of them to give would not run this test either."""

    def take(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(CommitGates, "take", take)
    monkeypatch.setattr(threading.Thread, "start", start)
    until = fenced.grant()
    wait_until(lambda: fenced.killed_at, "LiteFS is killed")
    assert fenced.killed_at[0] / 1e9 < until
    assert fenced.said.count("commits cannot be held off: [Errno 24] Too many open files") == 1
    monkeypatch.undo()
    until = fenced.grant()
    wait_until(lambda: not fenced.may_commit(), "commits are held off again")


def test_without_a_lease_nothing_is_done(fenced: Fenced) -> None:
    until = fenced.grant()
    fenced.lease.set_deadline(0)
    fenced.wait_for_end(until)
    assert fenced.killed_at == []
    assert fenced.said == []


def test_commits_are_held_off_while_the_lease_process_is_silent(fenced: Fenced) -> None:
    """Its relay carries nothing then: no other node would get to know of them."""
    fenced.grant(600)
    fenced.is_silent.set()
    wait_until(lambda: not fenced.may_commit(), "commits are held off")
    assert fenced.said == ["the lease process is silent: commits are held off"]
    fenced.is_silent.clear()
    wait_until(fenced.may_commit, "the gates are given back")
    assert fenced.killed_at == []


def test_a_silent_lease_process_holds_nobody_off_who_has_no_lease(fenced: Fenced) -> None:
    fenced.is_silent.set()
    wait_until(lambda: fenced.writer.lease_silence > 1, "it is silent")
    assert fenced.may_commit()
    assert fenced.said == []


def test_a_primary_without_a_lease_is_killed(fenced: Fenced) -> None:
    """It heard of it from a lease process that was stopped before it answered, and went on too late."""
    fenced.is_primary = lambda: False
    fenced.wait_for_end(fenced.grant())
    assert fenced.killed_at == []
    fenced.seems_primary = True
    wait_until(lambda: fenced.killed_at, "LiteFS is killed")
    assert "LiteFS is primary without a lease: it is killed" in fenced.said
