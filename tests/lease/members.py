"""Members of a Raft as processes of their own: `python -m tests.lease.members DESCRIPTION` is one."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from litefs_django._litefs.errors import LeaseError
from litefs_django._litefs.node.lease.raft import LeaderElection
from litefs_django._litefs.node.lease.state import Acquire, Applied, Barrier, Command, decode, encode
from tests.machine import SECRET, CleanedUp, free_ports, wait_until

TTL = 1.3  # and so a voter has forgotten after 1.5 s
ROOT = Path(__file__).parents[2]


class Member:
    """One member. What it answers comes from its own process."""

    def __init__(self, name: str, members: dict[str, str], directory: Path, **options: Any) -> None:
        self.name = name
        self.directory = directory / name
        self.options: dict[str, Any] = {"members": members, "secrets": [SECRET], "ttl": TTL, **options}
        self.log = directory / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None

    def __repr__(self) -> str:
        return f"<Member {self.name}>"

    def start(self, **options: Any) -> None:
        description = {"name": self.name, "directory": str(self.directory), **self.options, **options}
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.lease.members", json.dumps(description)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _ask(self, **request: Any) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise AssertionError(f"{self} has ended: {self.log.read_text()}") from error

    def propose(self, command: Command, timeout: float = 30.0) -> dict[str, Any] | None:
        """What was applied; None when that is not known within `timeout` seconds."""
        answer: dict[str, Any] | None = self._ask(propose=encode(command), timeout=timeout)
        return answer

    def acquire(self, session: str, cluster_id: str = "") -> bool:
        """Whether this member has the lease now."""
        after, ttl = self.status()["state"]["grants"], self.options["ttl"]
        applied = self.propose(
            Acquire(session=session, node=self.name, value="", ttl=ttl, after=after, cluster_id=cluster_id)
        )
        return applied is not None and applied["is_done"]

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._ask()
        return answer

    def is_committing(self) -> bool:
        return self.propose(Barrier(), timeout=0.5) is not None

    def compact(self) -> None:
        """Has it forget its log up to what it has applied, as after some minutes."""
        wait_until(lambda: self._ask(compact=True)["first"] > 1, "the log is compacted", context=self.log.read_text)

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def wait(self) -> int:
        """Its exit status."""
        assert self._process is not None
        return self._process.wait(60)


class Members(CleanedUp, list[Member]):
    """All members of one Raft, started, as a context manager."""

    def __init__(self, count: int, directory: Path, **options: Any) -> None:
        ports = free_ports(count)
        self.addresses = {f"web{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports, start=1)}
        super().__init__(Member(name, self.addresses, directory, **options) for name in self.addresses)

    def start(self) -> None:
        for member in self:
            member.start()

    def clean_up(self) -> None:
        for member in self:
            member.kill()

    def logs(self) -> str:
        return "\n".join(f"--- {member.name}\n{member.log.read_text()}" for member in self)

    def wait_committing(self, members: Iterable[Member] | None = None) -> None:
        """Until each of the members, all by default, gets commands committed."""
        for member in self if members is None else members:
            wait_until(member.is_committing, f"{member.name} commits", context=self.logs)

    def leader(self, members: Sequence[Member] | None = None) -> Member:
        """The one whom all of the members follow."""
        asked = self if members is None else members

        def led_by() -> str | None:
            leaders = {member.status()["leader"] for member in asked}
            return leaders.pop() if len(leaders) == 1 else None

        name = wait_until(led_by, "all follow one leader", context=self.logs)
        return next(member for member in self if member.name == name)


def _serve(description: dict[str, Any]) -> None:
    directory = Path(description.pop("directory"))
    try:
        election = LeaderElection(description.pop("name"), **description, directory=directory)
    except LeaseError as error:
        sys.exit(str(error))
    threading.Thread(target=_answer, args=(election,), daemon=True).start()
    try:
        election.run()
    except LeaseError as error:
        sys.exit(str(error))


def _answer(election: LeaderElection) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = election.status() | {"state": asdict(election.state), "cluster_id": election.cluster_id}
        if "compact" in request:
            election._raft.forceLogCompaction()
            answer["first"] = election.log[0][1]
        if "propose" in request:
            answer = _outcome(election, request["propose"], request["timeout"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def _outcome(election: LeaderElection, text: str, timeout: float) -> dict[str, Any] | None:
    command = decode(text)
    assert command is not None
    outcomes: queue.Queue[Applied | None] = queue.Queue()
    election.propose(command, outcomes.put)
    try:
        applied = outcomes.get(timeout=timeout)
    except queue.Empty:
        return None
    return asdict(applied) if applied else None


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(created).3f %(name)s %(message)s")
    _serve(json.loads(sys.argv[1]))
