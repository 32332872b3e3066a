"""Hosts with a network between them that fails as a test wants it to."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.raft.switch import CLONE_NEWNET, address
from tests.machine import CleanedUp

ROOT = Path(__file__).parents[3]


def network_problem() -> str | None:
    """Why there can be no such network here; None when there can."""
    if os.geteuid():
        return "only root can make network namespaces"
    if not os.access("/dev/net/tun", os.W_OK):
        return "/dev/net/tun is missing"
    missing = [program for program in ("ip", "nsenter") if shutil.which(program) is None]
    return f"{', '.join(missing)} is missing" if missing else None


class Network(CleanedUp):
    """`count` hosts, numbered from 1, each with all others in reach until something is cut."""

    def __init__(self, count: int) -> None:
        self.hosts = range(1, count + 1)
        self._switch: subprocess.Popen[str] | None = None
        self._namespaces: list[str] = []

    def start(self) -> None:
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.raft.switch", str(len(self.hosts))],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._switch.stdout is not None
        descriptors = self._switch.stdout.readline().split()
        assert len(descriptors) == len(self.hosts), "The switch could not start"
        self._namespaces = [f"/proc/{self._switch.pid}/fd/{descriptor}" for descriptor in descriptors]

    def clean_up(self) -> None:
        if self._switch is not None:
            self._switch.communicate()

    def address(self, host: int) -> str:
        return address(host)

    def prefix(self, host: int) -> list[str]:
        """Before a command that is to run on this host."""
        return ["nsenter", f"--net={self._namespaces[host - 1]}"]

    def enter(self, host: int) -> None:
        """The sockets that this thread makes from now on are this host's."""
        namespace = os.open(self._namespaces[host - 1], os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(namespace)

    def heal(self) -> None:
        self.fail()

    def isolate(self, *hosts: int) -> None:
        """Nothing goes from or to these."""
        self.fail(cut=[*self.directions(hosts, self.hosts), *self.directions(self.hosts, hosts)])

    def directions(self, origins: Iterable[int], targets: Iterable[int]) -> list[tuple[int, int]]:
        targets = list(targets)
        return [(origin, target) for origin in origins for target in targets if origin != target]

    def fail(self, *, cut: Iterable[tuple[int, int]] = (), delay: float = 0.0, loss: float = 0.0) -> None:
        """Replaces all faults by these: directions that carry nothing, delay in seconds one way, loss from 0 to 1."""
        assert self._switch is not None
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(json.dumps({"cut": list(cut), "delay": delay, "loss": loss}) + "\n")
        self._switch.stdin.flush()
        assert self._switch.stdout.readline() == "done\n"
