"""What a planned change says and holds when LiteFS does what a real one cannot be made to do in time.

Fake LiteFS stand in for the two: one that takes a handoff and does not act on it, one that acts on it and does not
answer, one that is gone right after it was given the lease. The whole of it on real ones:
tests/cluster/run/test_planned_change.py.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from litefs_django._litefs import write_turn
from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.node.gates import CommitGates
from litefs_django._litefs.node.planned_change import Patience, PlannedChange
from litefs_django._litefs.write_turn import FileLock, gate_path
from tests.machine import wait_until

# Short where a test waits for the end of it; what is there is found at the first look.
PATIENCE = Patience(answer=60.0, connect=0.2, catch_up=0.2, leave=0.4, arrive=0.2)
POSITION = {"txid": "000000000000000a", "checksum": "8f2a60e1c0d3b4a5"}


class FakeLiteFS:
    def __init__(self, name: str, *, is_primary: bool, follows: str = "") -> None:
        self.name = name
        self.is_primary = is_primary
        self.follows = follows
        self.cluster_id = "LFSC1"
        self.positions = {"db": POSITION}
        # The status; None when the connection ends without an answer.
        self.handoff: Callable[[], int | None] = lambda: 200
        self.asked_to_hand_off: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                info = {
                    "clusterID": fake.cluster_id,
                    "isPrimary": fake.is_primary,
                    "candidate": True,
                    "path": "/data",
                    "primary": {"hostname": fake.follows},
                }
                self.answer(200, info if self.path == "/info" else {"store": {"dbs": fake.positions}})

            def do_POST(self) -> None:
                fake.asked_to_hand_off.append(self.path)
                if status := fake.handoff():
                    self.answer(status, {})

            def answer(self, status: int, body: object) -> None:
                self.send_response(status)
                self.send_header("Litefs-Id", f"ID-{fake.name}")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def two() -> Iterator[tuple[FakeLiteFS, FakeLiteFS]]:
    with ExitStack() as stack:
        one, other = FakeLiteFS("web1", is_primary=True), FakeLiteFS("web2", is_primary=False, follows="web1")
        for fake in (one, other):
            stack.callback(fake.close)
        yield one, other


class Attempt:
    """A change from web1 to web2, and the gate of db as the application sees it."""

    def __init__(self, run_path: Path, two: tuple[FakeLiteFS, FakeLiteFS]) -> None:
        node = NodeDescription(
            name="web1",
            primary=None,
            mount_path=Path("/litefs"),
            run_path=run_path,
            databases=("db",),
            urls={fake.name: fake.url for fake in two},
            identity=None,
            lease=None,
            litefs=(),
            search_path="",
            application=(),
            on_primary=(),
            migrate=(),
            claims=(),
        )
        self.gates = CommitGates(run_path, node.databases)
        self.said: list[str] = []
        self.is_wanted = True
        self.change = PlannedChange(node, self.gates, PATIENCE, self.said.append, lambda: self.is_wanted)
        self._gate = FileLock(gate_path(run_path, "db"))

    def run(self) -> str:
        """Why it has not come true."""
        with pytest.raises(SupervisorError) as raised:
            self.change.to("web2")
        return str(raised.value)

    def may_commit(self) -> bool:
        is_free = self._gate.acquire(0)
        self._gate.release()
        return is_free


Two = tuple[FakeLiteFS, FakeLiteFS]


def test_it_comes_true_behind_the_gates(tmp_path: Path, two: Two) -> None:
    attempt = Attempt(tmp_path, two)

    def hand_off() -> int:
        assert not attempt.may_commit()
        two[0].is_primary, two[1].is_primary = False, True
        return 200

    two[0].handoff = hand_off
    attempt.change.to("web2")
    assert two[0].asked_to_hand_off == ["/handoff?nodeID=ID-web2"]
    assert not attempt.change.is_undecided
    assert not attempt.may_commit(), "the caller releases them"
    attempt.gates.release()
    assert attempt.may_commit()


def test_a_litefs_that_takes_the_handoff_and_stays_the_primary(tmp_path: Path, two: Two) -> None:
    attempt = Attempt(tmp_path, two)
    assert "has not come true within 0.4 s; web1 is still the primary." in attempt.run()
    assert attempt.change.is_undecided
    assert not attempt.may_commit()


def test_a_litefs_that_refuses_the_handoff(tmp_path: Path, two: Two) -> None:
    two[0].handoff = lambda: 500
    attempt = Attempt(tmp_path, two)
    assert attempt.run().endswith("Nothing is changed: web1 is the primary.")
    assert not attempt.change.is_undecided


def test_a_litefs_that_acts_on_the_handoff_without_an_answer(tmp_path: Path, two: Two) -> None:
    def hand_off() -> None:
        two[0].is_primary, two[1].is_primary = False, True

    two[0].handoff = hand_off
    Attempt(tmp_path, two).change.to("web2")


def test_a_target_that_dies_with_the_lease(tmp_path: Path, two: Two) -> None:
    def hand_off() -> int:
        two[0].is_primary = False
        return 200

    two[0].handoff = hand_off
    attempt = Attempt(tmp_path, two)
    reason = attempt.run()
    assert "web1 has handed over and is not the primary any more. Whether web2 is, is unknown" in reason
    assert not attempt.change.is_undecided


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cluster_id": "LFSC2"}, "web2 is of another cluster (LFSC2, and this one is LFSC1)"),
        ({"is_primary": True}, "two primaries"),
        ({"follows": ""}, "web2 is connected to web1; it follows nobody"),
        ({"follows": "web3"}, "web2 is connected to web1; it follows web3"),
        ({"positions": {}}, "db has not arrived"),
        ({"positions": {"db": POSITION | {"txid": "0000000000000007"}}}, "db is 3 transactions behind"),
        ({"positions": {"db": POSITION | {"checksum": "8000000000000000"}}}, "db is not a copy"),
    ],
)
def test_what_it_refuses(tmp_path: Path, two: Two, change: dict[str, object], reason: str) -> None:
    for name, value in change.items():
        setattr(two[1], name, value)
    attempt = Attempt(tmp_path, two)
    said = attempt.run()
    assert reason in said
    assert said.endswith("Nothing is changed: web1 is the primary.")
    assert not two[0].asked_to_hand_off
    assert attempt.may_commit()


def test_nobody_wants_it_any_more(tmp_path: Path, two: Two) -> None:
    attempt = Attempt(tmp_path, two)
    attempt.is_wanted = False
    assert attempt.run() == "Given up: this node stops. Nothing is changed: web1 is the primary."
    assert not two[0].asked_to_hand_off


def test_gates_that_are_taken_for_good_stay_so(tmp_path: Path) -> None:
    gates = CommitGates(tmp_path, ["db"])
    gate = FileLock(gate_path(tmp_path, "db"))
    assert gates.take(1) == []
    assert gates.take(1, for_good=True) == []
    gates.release()
    assert not gate.acquire(0)


def test_gates_that_are_not_free(tmp_path: Path) -> None:
    gates = CommitGates(tmp_path, ["db", "other"])
    gate = FileLock(gate_path(tmp_path, "db"))
    assert gate.acquire(1)
    assert gates.take(0.05) == ["db"]
    gates.release()
    gate.release()
    assert gate.acquire(1)


def test_gates_are_renewed_unless_they_are_held_or_waited_for(tmp_path: Path) -> None:
    gates = CommitGates(tmp_path, ["db"])
    with closing(FileLock(gate_path(tmp_path, "db"))) as before, closing(FileLock(gate_path(tmp_path, "db"))) as after:
        assert gates.take(0) == []
        assert gates.renew()
        assert not after.acquire(0)
        gates.release()
        assert before.acquire(0)
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(gates.take, 30)
            wait_until(lambda: write_turn._queue(before.path.stat())._waiters, "it is waited for")
            assert not gates.renew()
            before.release()
            assert taken.result() == []
        gates.release()
        assert before.acquire(0)
        assert gates.renew()
        assert after.acquire(0)
        assert gates.take(0) == ["db"]


def test_a_gate_that_cannot_be_taken_keeps_none_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has no file descriptor left would not run this test either."""
    gates = CommitGates(tmp_path, ["db", "other"])

    def acquire(*args: object) -> bool:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(gates._gates["db"], "acquire", acquire)
    with pytest.raises(OSError, match="Too many open files"):
        gates.take(0)
    assert gates._gates["other"].is_held
    gates.release()
