"""The supervisor of one node: LiteFS, the application and the primary's commands, from start to end.

One loop that never blocks for longer than a heartbeat of the node file. Its course is a generator that
yields, at each turn, the sentence that says what the node does or waits for; a sentence is logged when it
differs from the last one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import Any

from litefs_django._litefs.errors import ClientError, LiteFSError, SupervisorError
from litefs_django._litefs.mount import Position, PrimaryDetector
from litefs_django._litefs.node.children import GRACE, Backoff, Child, Children
from litefs_django._litefs.node.control import ControlServer, Say
from litefs_django._litefs.node.description import Command, NodeDescription
from litefs_django._litefs.node.fence import Fence
from litefs_django._litefs.node.gates import CommitGates
from litefs_django._litefs.node.lease_process import LeaseProcess
from litefs_django._litefs.node.litefs_process import LiteFSProcess
from litefs_django._litefs.node.output import Output
from litefs_django._litefs.node.primary_command import PrimaryCommand
from litefs_django._litefs.node.replicas import wait_until_one_has
from litefs_django._litefs.node.role import LEAVE_TIMEOUT, Role
from litefs_django._litefs.node.signals import FORWARDED, STOP, Signals
from litefs_django._litefs.node.waiting import PrimaryWatch, counted
from litefs_django._litefs.node_file import HEARTBEAT, NodeFileWriter

APPLICATION = "app"

# A clean stop: with the children's grace (5 s) and LiteFS's (1 s) these fit in 8 s.
_GATES_TIMEOUT = 0.5
_CATCH_UP_TIMEOUT = 1.0
_ANSWER_TIMEOUT = 1.0
# Seconds that a node counts as primary while its mount says nothing: LiteFS is back in less when it is
# restarted, and no other node becomes primary so soon.
_ROLE_LIFETIME = 2.0

Steps = Generator[str, None, None]


class _StopRequested(Exception):
    """SIGTERM or SIGINT has come."""


class Supervisor:
    """Runs the node that it is given a description of. Only for the main thread."""

    def __init__(self, node: NodeDescription) -> None:
        for descriptor in (*node.claims, *((node.lease.listener,) if node.lease else ())):
            os.set_inheritable(descriptor, False)
        self._node = node
        self._signals = Signals()
        self._output = Output(hidden=node.lease.token if node.lease else "")
        self._children = Children(self._output)
        self._gates = CommitGates(node.run_path, node.databases)
        self._role = Role(node, self._gates)
        self._node_file = NodeFileWriter(node.run_path)
        self._lease: LeaseProcess | None = None
        if node.lease is not None:
            self._lease = LeaseProcess(
                node.lease, self._children, self._output.say, self._node_file, self._signals.poke
            )
        self._litefs = LiteFSProcess(
            node, self._children, self._node_file, self._gates, self._output.say, self._signals.poke, self._lease
        )
        self._fence = self._make_fence(node.lease.ttl) if node.lease is not None else None
        self._commands = [
            PrimaryCommand(f"primary-{number}", argv, self._children, self._output.say)
            for number, argv in enumerate(node.on_primary, 1)
        ]
        self._control = ControlServer(
            node.run_path, {"status": self._status, "promote": self._promote, "stop": self._request_stop}
        )
        self._foreground: Child | None = None  # the application, or a migration before it
        self._commands_may_run = False
        self._primary_until = 0.0
        self._keeps_litefs = self._keeps_lease = True
        self._is_stopping = False

    def _make_fence(self, ttl: float) -> Fence:
        return Fence(
            ttl,
            CommitGates(self._node.run_path, self._node.databases),
            self._node_file,
            is_primary=self._litefs.may_be_primary,
            seems_primary=lambda: self._litefs.view.is_primary,
            kill=self._litefs.kill,
            say=self._output.say,
        )

    def run(self) -> int:
        """Runs the node to its end. Returns the exit code."""
        course = self._course()
        said = ""
        try:
            sentence = next(course)
            while True:
                if sentence != said:
                    said = sentence
                    self._output.say(sentence)
                try:
                    interruption = self._turn()
                except Exception as error:
                    if self._is_stopping:
                        raise
                    interruption = error
                sentence = course.throw(interruption) if interruption else next(course)
        except StopIteration as end:
            self._control.close()
            self._node_file.close()
            self._output.close(timeout=0.5)
            return int(end.value)

    def _turn(self) -> Exception | None:
        """Waits until something happens and does what always is to be done. What ends the course, if anything."""
        interruption: Exception | None = None
        for number in self._signals.wait(HEARTBEAT):
            if number in STOP and not self._is_stopping:
                interruption = _StopRequested()
            elif number in FORWARDED and self._application is not None:
                self._application.send(number)
        self._node_file.beat()
        self._children.reap()
        try:
            if self._lease is not None and self._keeps_lease:
                self._lease.keep()
            if self._keeps_litefs:
                self._litefs.keep()
        except SupervisorError as error:
            interruption = None if self._is_stopping else error
        if self._commands_may_run:
            is_primary = self._is_primary()
            for command in self._commands:
                command.keep(is_primary=is_primary)
        return interruption

    def _is_primary(self) -> bool:
        """Whether commands for the primary may run: a fact that expires when the mount says nothing any more."""
        view = self._litefs.view
        if view.is_primary:
            self._primary_until = self._litefs.seen_at + _ROLE_LIFETIME
        elif view.serves or self._lease is not None:  # which is given to another node at once
            self._primary_until = 0.0
        return time.monotonic() < self._primary_until

    def _course(self) -> Generator[str, None, int]:
        code: int | None = None
        try:
            code = yield from self._live()
        except _StopRequested:
            pass
        except LiteFSError as error:
            self._output.say(str(error))
            code = 1
        except Exception as error:  # a mistake of ours must not leave a mount and an application behind
            self._output.say(f"stops, for a mistake in the supervisor itself: {error!r}")
            code = 1
        self._is_stopping = True
        yield from self._stop()
        return self._exit_code() if code is None else code

    @property
    def _application(self) -> Child | None:
        child = self._foreground
        return child if child is not None and child.name == APPLICATION else None

    def _exit_code(self) -> int:
        """After SIGTERM: the application's own, 0 when it knew nothing better than to die of that SIGTERM."""
        code = self._application.returncode if self._application is not None else None
        return 0 if code in (None, -signal.SIGTERM) else _shell_code(code)

    def _live(self) -> Generator[str, None, int]:
        yield from self._until_synced()
        if self._node.migrate:
            yield from self._migrate()
        self._commands_may_run = True
        application = yield from self._run_again_after_sigbus(APPLICATION, self._node.application, self._describe)
        assert application.returncode is not None
        return _shell_code(application.returncode)

    def _until_synced(self) -> Steps:
        since = time.monotonic()
        watch = PrimaryWatch(self._node, lambda: self._litefs.view.primary)
        try:
            while not (view := self._litefs.view).is_synced:
                what = watch.awaited if view.serves else f"LiteFS to serve {self._node.mount_path}"
                yield f"waits for {what} {counted(time.monotonic() - since)}"
        finally:
            watch.stop()

    def _migrate(self) -> Steps:
        """Runs litefs_migrate, which migrates as the primary and waits for the migrations everywhere else."""
        since = time.monotonic()

        def sentence() -> str:
            if self._litefs.view.is_primary:
                return "migrates"
            what = "the primary's migrations to arrive" if self._litefs.view.serves else "LiteFS, to migrate"
            return f"waits for {what} {counted(time.monotonic() - since)}"

        child = yield from self._run_again_after_sigbus("migrate", self._node.migrate, sentence)
        while not child.is_gone:
            child.end()
            yield "ends what the migrations have left running"
        if child.returncode:
            raise SupervisorError('The migrations have failed: the lines of "migrate" above say why.')

    def _run_again_after_sigbus(
        self, name: str, argv: Command, sentence: Callable[[], str]
    ) -> Generator[str, None, Child]:
        """As `_run`. SQLite maps the -shm file into memory: a LiteFS that ends can take its readers with it."""
        what = "the application" if name == APPLICATION else "litefs_migrate"
        backoff = Backoff()
        while True:
            child = yield from self._run(name, argv, sentence)
            self._output.say(f"{what} has ended: {child.how_it_ended}")
            if child.returncode != -signal.SIGBUS:
                return child
            backoff.ended(child.started)
            while not (child.is_gone and backoff.is_over and self._litefs.view.serves):
                if not child.is_gone:
                    child.end()
                yield f"starts {what} again as soon as LiteFS serves"

    def _run(self, name: str, argv: Command, sentence: Callable[[], str]) -> Generator[str, None, Child]:
        """Runs a command to its end. Raises SupervisorError when it cannot be executed."""
        try:
            child = self._foreground = self._children.start(name, argv, on_our_death=signal.SIGTERM)
        except OSError as error:
            raise SupervisorError(f"{argv[0]!r} cannot be started: {error}.") from error
        while child.is_running:
            yield sentence()
        return child

    def _describe(self) -> str:
        view = self._litefs.view
        if not view.serves:
            return "the application runs, LiteFS is down"
        if view.is_primary:
            return "the application runs, this node is the primary"
        return f"the application runs, this node is a replica of {view.primary or 'no primary yet'}"

    def _stop(self) -> Steps:
        started = time.monotonic()
        self._role.stop_asking()
        has_left = yield from self._leave_role()
        grace = GRACE - (time.monotonic() - started)
        self._commands_may_run = False
        children = [child for child in (self._foreground, *(command.child for command in self._commands)) if child]
        while alive := [child for child in children if not child.is_gone]:
            for child in alive:
                child.end(grace)
            yield f"waits for {', '.join(child.name for child in alive)} to end"
        self._keeps_litefs = False
        view = self._litefs.view
        if view.serves:
            yield from self._hold_commits()
        if view.is_primary and self._node.others and not has_left:
            yield from self._let_another_catch_up()
        yield from self._litefs.stop()
        if self._fence is not None and self._lease is not None:
            self._fence.stop()
            self._keeps_lease = False
            yield from self._lease.stop()

    # What the control socket asks, each in a thread of its own.

    def _status(self, request: Mapping[str, Any], say: Say) -> dict[str, Any]:
        view, application = self._litefs.view, self._application
        positions: Mapping[str, Position] = {}
        with suppress(ClientError):
            positions = self._node.reach.client(self._node.name, _ANSWER_TIMEOUT).positions()
        return {
            "node": self._node.name,
            "serves": view.serves,
            "synced": view.is_synced,
            "role": "primary" if view.is_primary else "replica" if view.serves else None,
            "primary": self._node.name if view.is_primary else view.primary,
            "generation": self._node_file.generation,
            "lease": self._lease.status() if self._lease is not None else None,
            "positions": {name: str(position) for name, position in positions.items()},
            "application": application.pid if application is not None and application.is_running else None,
            "stopping": self._is_stopping,
        }

    def _promote(self, request: Mapping[str, Any], say: Say) -> str:
        def tell(text: str) -> None:
            self._output.say(text)
            say(text)

        try:
            outcome = self._role.promote(str(request.get("node")), tell, is_forwarded=bool(request.get("forwarded")))
        except LiteFSError as error:
            self._output.say(str(error))
            raise
        self._output.say(outcome)
        return outcome

    def _request_stop(self, request: Mapping[str, Any], say: Say) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return f"{self._node.name} stops."

    def _leave_role(self) -> Generator[str, None, bool]:
        """An elected primary hands over while its application still serves. Whether it has."""
        if not (self._node.is_elected and self._node.others and self._litefs.view.is_primary):
            return False
        has_left = threading.Event()

        def leave() -> None:
            self._role.leave(self._output.say)
            has_left.set()

        yield from self._in_thread(leave, LEAVE_TIMEOUT, "hands the lease to another node")
        return has_left.is_set()

    def _hold_commits(self) -> Steps:
        """Takes all commit gates: other processes of this machine may be writing, a shell for instance."""

        def hold() -> None:
            if missing := self._gates.take(_GATES_TIMEOUT, for_good=True):
                self._output.say(f"a commit does not end: {', '.join(missing)}")

        yield from self._in_thread(hold, _GATES_TIMEOUT + HEARTBEAT, "waits for commits in flight")

    def _let_another_catch_up(self) -> Steps:
        """What no other node has is lost when one of them becomes primary."""

        def catch_up() -> None:
            detector = PrimaryDetector(self._node.mount_path)
            found = {name: detector.position(name) for name in self._node.databases}
            known = {name: position for name, position in found.items() if position is not None and position.txid > 0}
            if not wait_until_one_has(known, self._node.reach, self._node.others, _CATCH_UP_TIMEOUT):
                self._output.say("no other node is known to have all transactions of this one")

        yield from self._in_thread(catch_up, _CATCH_UP_TIMEOUT + HEARTBEAT, "waits for another node to have everything")

    def _in_thread(self, work: Callable[[], None], timeout: float, sentence: str) -> Steps:
        """Does something that may block, and goes on when it is done or `timeout` seconds have passed."""
        is_done = threading.Event()

        def run() -> None:
            try:
                work()
            except (LiteFSError, OSError) as error:
                self._output.say(str(error))
            finally:
                is_done.set()
                self._signals.poke()

        threading.Thread(target=run, daemon=True).start()
        deadline = time.monotonic() + timeout
        while not is_done.is_set() and time.monotonic() < deadline:
            yield sentence


def _shell_code(code: int) -> int:
    """As a shell says it: 128 + the signal's number."""
    return code if code >= 0 else 128 - code
