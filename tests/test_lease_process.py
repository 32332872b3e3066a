"""What the supervisor does about its lease process. Programs of a line stand in for one that hangs, ends or knows
nothing; the real one: tests/cluster/run/test_raft.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.node import lease_process
from litefs_django._litefs.node.children import Children
from litefs_django._litefs.node.description import LeaseService
from litefs_django._litefs.node.lease_process import LeaseProcess
from litefs_django._litefs.node.output import Output
from litefs_django._litefs.node_file import LeaseWords, NodeFileWriter, boottime_ns
from tests.machine import wait_until

SLEEP = "import time; time.sleep(60)"


class Kept:
    """A supervisor's part: the loop that keeps it, and what it heard."""

    def __init__(self, code: str, run_path: Path) -> None:
        self.output = Output(stdout=os.open(os.devnull, os.O_WRONLY), stderr=os.open(os.devnull, os.O_WRONLY))
        self.children = Children(self.output)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.said: list[str] = []
        self.node_file = NodeFileWriter(run_path)
        self.words = LeaseWords(run_path)
        self.woken = threading.Event()
        command = (sys.executable, "-c", code, str(self.listener.fileno()))
        service = LeaseService(
            command=command, listener=self.listener.fileno(), port=self.port, token="the token", ttl=3.0
        )
        self.process = LeaseProcess(service, self.children, self.said.append, self.node_file, self.woken.set)

    def turn(self) -> None:
        self.children.reap()
        self.process.keep()

    def turns_until(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> bool:
            self.turn()
            return bool(condition())

        wait_until(holds, what)

    def close(self) -> None:
        for child in list(self.children._running.values()):
            child.send(signal.SIGKILL)
        wait_until(lambda: self.children.reap() or not self.children._running, "all have ended")
        self.listener.close()
        self.node_file.close()
        self.output.close(1)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[str], Kept]]:
    kept: list[Kept] = []

    def start(code: str = SLEEP) -> Kept:
        kept.append(Kept(code, tmp_path))
        return kept[-1]

    yield start
    for each in kept:
        each.close()


class Answers:
    """An API in the lease process's place, on its port; `statuses` is what it answers, the last one for ever."""

    def __init__(self, listener: socket.socket, *statuses: int) -> None:
        self.asked: list[tuple[str, str, int]] = []
        left = list(statuses)
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                until = int(parse_qs(urlsplit(self.path).query).get("until", ["0"])[0])
                answers.asked.append((urlsplit(self.path).path, self.headers["X-Consul-Token"], until))
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.end_headers()
                self.wfile.write(json.dumps({"leader": "web1"}).encode())

            def do_GET(self) -> None:
                self.do_PUT()

            def log_message(self, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener.dup()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Answers:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_it_has_the_listening_socket_and_is_started_again(keep: Callable[[str], Kept]) -> None:
    """And its port with it: LiteFS asks on, and is answered by the next one."""
    serve = (
        "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); "
        "c, _ = s.accept(); c.sendall(b'%d' % __import__('os').getpid()); c.close()"
    )
    kept = keep(serve)
    pids = set()
    for _ in range(2):
        kept.turns_until(lambda: kept.children._running, "it runs")
        with socket.create_connection(("127.0.0.1", kept.port), timeout=30) as connection:
            pids.add(connection.makefile("rb").read())
        kept.turns_until(lambda: kept.said, "its end is noticed")
        assert kept.said.pop() == "the lease process has ended: exit code 0"
    assert len(pids) == 2


def test_one_that_refuses_to_start_ends_the_node(keep: Callable[[str], Kept]) -> None:
    kept = keep("raise SystemExit(1)")
    with pytest.raises(SupervisorError, match="The lease process refuses to start"):
        kept.turns_until(lambda: False, "it has given up")


def test_one_that_has_lived_is_started_again_however_it_ends(keep: Callable[[str], Kept]) -> None:
    kept = keep("raise SystemExit(1)")
    kept.words.beat()
    kept.turns_until(lambda: len(kept.said) > 1, "it has ended twice")


def test_one_that_hangs_is_ended_and_started_again(
    keep: Callable[[str], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_process, "_HUNG", 0.5)
    kept = keep("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    kept.turns_until(lambda: len(kept.children._running) == 1, "it runs")
    (hung,) = kept.children._running
    for _ in range(5):
        kept.words.beat()
        kept.turns_until(lambda: kept.node_file.lease_silence > 0.25, "it beats slowly")
    assert kept.said == []
    kept.turns_until(lambda: kept.children._running and hung not in kept.children._running, "another one runs")
    assert kept.said == ["the lease process hangs: it is ended", "the lease process has ended: SIGKILL"]


def test_litefs_may_start_once_the_lease_is_given_back(keep: Callable[[str], Kept]) -> None:
    kept = keep(SLEEP)
    kept.words.set_deadline(boottime_ns() / 1e9 + 600)
    assert kept.process.may_litefs_start
    before = boottime_ns()
    with Answers(kept.listener, 500, 200) as answers:
        kept.process.litefs_has_ended()
        assert not kept.process.may_litefs_start
        assert kept.woken.wait(30)
        wait_until(lambda: kept.process.may_litefs_start, "it may")
    (path, token, first), (_, _, second) = answers.asked
    assert (path, token) == ("/litefs_django/left", "the token")
    assert before < first < before + 3_000_000_000
    # What it is asked again for is another request: it must not believe the first one any more by then.
    assert second > first


def test_litefs_may_start_when_its_lease_is_over_though_nobody_answers(keep: Callable[[str], Kept]) -> None:
    kept = keep(SLEEP)
    kept.words.set_deadline(boottime_ns() / 1e9 + 1.5)
    kept.process.litefs_has_ended()
    assert kept.woken.wait(30)
    assert boottime_ns() > kept.node_file.deadline
    wait_until(lambda: kept.process.may_litefs_start, "it may")


def test_litefs_without_a_lease_waits_for_one_question_at_most(keep: Callable[[str], Kept]) -> None:
    kept = keep(SLEEP)
    kept.process.litefs_has_ended()
    assert kept.woken.wait(30)


def test_a_lease_process_that_hangs_has_no_status(keep: Callable[[str], Kept]) -> None:
    assert keep(SLEEP).process.status() == {}


def test_its_status(keep: Callable[[str], Kept]) -> None:
    kept = keep(SLEEP)
    with Answers(kept.listener, 500, 200):
        assert kept.process.status() == {}
        assert kept.process.status() == {"leader": "web1"}


def test_it_ends_after_it_has_given_the_lease_back(keep: Callable[[str], Kept]) -> None:
    """Otherwise the others wait for it to expire."""
    kept = keep(SLEEP)
    kept.words.set_deadline(boottime_ns() / 1e9 + 600)
    kept.turns_until(lambda: kept.children._running, "it runs")
    stopping = kept.process.stop()
    kept.process.litefs_has_ended()
    assert next(stopping) == "gives the lease back"
    assert kept.children._running
    with Answers(kept.listener, 200):
        for _ in stopping:
            kept.children.reap()
    assert not kept.children._running


def test_it_is_stopped_with_sigkill_if_it_must_be(keep: Callable[[str], Kept]) -> None:
    kept = keep("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)")
    kept.turns_until(lambda: kept.children._running, "it runs")
    for _ in kept.process.stop():
        kept.children.reap()
    assert not kept.children._running
