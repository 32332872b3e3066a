"""Real LiteFS clusters on this machine, without the supervisor: for the tests of the database backend.

Whatever waits here waits for a condition, and says at its deadline what did not happen and what
LiteFS logged.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from litefs_django._litefs import fusermount
from litefs_django._litefs.config import ConfigGenerator
from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import Position, PrimaryDetector
from litefs_django._litefs.reading import read_settings
from tests.cluster.consul import ConsulAgent
from tests.machine import SESSION_VARIABLE, CleanedUp, free_ports, mount_points, wait_until

DATABASE = "db.sqlite3"


class LiteFSNode:
    """One LiteFS process with paths of its own under `directory`."""

    def __init__(self, litefs: Mapping[str, Any], directory: Path, binary: Path) -> None:
        self.mount = directory / "mount"
        self.data = directory / "data"
        self.run = directory / "run"
        self.log = directory / "litefs.log"
        self.litefs = {
            **litefs,
            "MOUNT_PATH": str(self.mount),
            "DATA_PATH": str(self.data),
            "RUN_PATH": str(self.run),
        }
        self.settings = read_settings(self.litefs, {"default": DATABASE})
        self.name = self.settings.cluster.node
        self.http_port = self.settings.cluster.this.http_port
        self.detector = PrimaryDetector(self.mount)
        self._config = directory / "litefs.yml"
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False

    def __repr__(self) -> str:
        return f"<LiteFSNode {self.name}>"

    @property
    def pid(self) -> int | None:
        """LiteFS's process id; None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def is_answering(self) -> bool:
        """Whether LiteFS runs and is not paused: whoever touches the mount of a paused one hangs."""
        return self.pid is not None and not self._is_paused

    def start(self) -> None:
        """Starts LiteFS. Returns once it serves the mount; a replica may still have to synchronise."""
        assert self.pid is None, f"{self.name} runs already"
        self.unmount()
        for directory in (self.mount, self.data, self.run):
            directory.mkdir(parents=True, exist_ok=True)
        self._write_config()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "mount", "-config", self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                # Ctrl-C is for pytest, whose fixtures then end the cluster.
                start_new_session=True,
            )
        wait_for(self.is_serving, "LiteFS serves its mount", [self])

    def _write_config(self) -> None:
        ConfigGenerator(self.settings).write(self._config)

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, as a supervisor would. Returns LiteFS's exit status; a busy mount is let go lazily."""
        assert self._process is not None, f"{self.name} was never started"
        self._process.terminate()
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.clean_up()
            raise AssertionError(f"LiteFS ignored SIGTERM for {timeout} s.\n{log_tails([self])}") from None
        self.unmount()
        return status

    def kill(self) -> None:
        """SIGKILL. The mount stays behind, dead, as after any crash; `start` takes it away."""
        assert self._process is not None, f"{self.name} was never started"
        self._process.kill()
        self._process.wait()
        self._is_paused = False

    def pause(self) -> None:
        """SIGSTOP: what touches the mount hangs until `resume` or `kill`."""
        assert self._process is not None
        self._is_paused = True
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._is_paused = False

    def unmount(self) -> None:
        """Takes the mount away, lazily where a process still uses it; nothing happens where there is none."""
        while str(self.mount) in mount_points():
            subprocess.run(["fusermount3", "-uz", self.mount], env=self._environment(), check=True)

    def clean_up(self) -> None:
        """Ends LiteFS in whatever state it is, and unmounts."""
        if self._process is not None:
            self.kill()
        self.unmount()

    def _environment(self) -> dict[str, str]:
        """LiteFS's own: it would also read CONSUL_*, FLY_* and LITEFS_*."""
        path = os.environ["PATH"]
        if shutil.which("fusermount3") is None:
            helper = self.run / "bin"
            fusermount.install_helper(helper)
            path = f"{helper}:{path}"
        return {"PATH": path, SESSION_VARIABLE: os.environ.get(SESSION_VARIABLE, "")}

    def is_serving(self) -> bool:
        """Whether LiteFS answers on the mount. Fails when it has ended."""
        assert self.pid is not None, f"LiteFS of {self.name} has ended.\n{log_tails([self])}"
        return self.detector.device() is not None and (self.mount / ".lag").exists()

    def database(self, name: str = DATABASE) -> Path:
        return self.mount / name

    def position(self, name: str = DATABASE) -> Position | None:
        return self.detector.position(name)

    def is_primary(self) -> bool:
        """Whether this node may write; False when it does not answer."""
        return self.is_answering and self.detector.is_primary(DATABASE)

    def follows(self, primary: LiteFSNode) -> bool:
        """Whether this node names `primary` (LiteFS does so before it connects) and has ever been synchronised."""
        return self.detector.primary_name() == primary.name and self.detector.lag() is not None


class Cluster(CleanedUp):
    """`count` nodes on loopback; as a context manager it starts them and leaves nothing behind.

    The first node is the first primary.
    """

    def __init__(self, count: int, directory: Path, binary: Path, lease: Mapping[str, Any]) -> None:
        names = [f"node{number}" for number in range(1, count + 1)]
        ports = free_ports(count)
        members = {name: {"ADDRESS": "127.0.0.1", "HTTP_PORT": port} for name, port in zip(names, ports, strict=True)}
        self.nodes = [LiteFSNode({**lease, "NODES": members, "NODE": name}, directory / name, binary) for name in names]

    def start(self) -> None:
        """Starts each node that does not run, and waits until one is primary and all others follow it."""
        for node in self.nodes:
            if node.pid is None:
                node.start()
            if node is self.nodes[0]:
                wait_for(lambda: any(node.is_primary() for node in self.answering), "a node is primary", self.nodes)
        self.wait_settled()

    def clean_up(self) -> None:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.clean_up)

    @property
    def answering(self) -> list[LiteFSNode]:
        """The nodes that run and are not paused."""
        return [node for node in self.nodes if node.is_answering]

    @property
    def primary(self) -> LiteFSNode:
        """The one node that says that it is primary."""
        (primary,) = (node for node in self.nodes if node.is_primary())
        return primary

    @property
    def replicas(self) -> list[LiteFSNode]:
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    def wait_settled(self) -> None:
        """Waits until one of the answering nodes is primary and all others follow it."""

        def settled() -> bool:
            primaries = [node for node in self.answering if node.is_primary()]
            return len(primaries) == 1 and all(
                node is primaries[0] or node.follows(primaries[0]) for node in self.answering
            )

        wait_for(settled, "one node is primary and all others follow it", self.nodes)

    def wait_equal(self, *names: str) -> None:
        """Waits until all answering nodes hold each of these databases at the same position."""

        def different() -> dict[str, dict[str, Position | None]]:
            found = {name: {node.name: node.position(name) for node in self.answering} for name in names or (DATABASE,)}
            return {name: at for name, at in found.items() if None in at.values() or len(set(at.values())) > 1}

        wait_for(lambda: not different(), lambda: f"the positions are equal: {different()}", self.nodes)


class StaticCluster(Cluster):
    """Its first node is the primary for ever."""

    def __init__(self, count: int, directory: Path, binary: Path) -> None:
        super().__init__(
            count,
            directory,
            binary,
            {"LEADER_ELECTION": "static", "PRIMARY": "node1", "LITEFS_YML": {"lease": {"reconnect-delay": "100ms"}}},
        )


class ConsulCluster(Cluster):
    """Its primary can be changed. It has a Consul agent of its own."""

    def __init__(self, count: int, directory: Path, binary: Path, consul_binary: Path) -> None:
        self.consul = ConsulAgent(directory / "consul", consul_binary)
        super().__init__(
            count,
            directory,
            binary,
            {
                "LEADER_ELECTION": "consul",
                "CONSUL": {"URL": self.consul.url, "KEY": "litefs"},
                "LITEFS_YML": {"lease": {"reconnect-delay": "100ms", "consul": {"lock-delay": "1ms"}}},
            },
        )

    def start(self) -> None:
        self.consul.start()
        super().start()

    def clean_up(self) -> None:
        with ExitStack() as stack:
            stack.callback(self.consul.clean_up)
            stack.callback(super().clean_up)

    def promote(self, node: LiteFSNode) -> None:
        """Makes `node` the primary, and waits until it is and all others follow it.

        No commit may be under way: LiteFS would lose it and exit.
        """
        wait_for(lambda: self.request(node), f"{node.name} accepts POST /promote", self.nodes)
        wait_for(node.is_primary, f"{node.name} is primary", self.nodes)
        self.wait_settled()

    def expire_lease(self) -> None:
        """Ends the lease at once, as its TTL would after the primary's death."""
        self.consul.expire("litefs")

    @staticmethod
    def request(node: LiteFSNode) -> bool:
        """Asks for it. Whether LiteFS took the request: it answers 500 while it is not connected to a primary."""
        try:
            urlopen(Request(f"http://127.0.0.1:{node.http_port}/promote", method="POST"), timeout=5).close()
        except HTTPError as error:
            error.close()
            return False
        return True


def wait_for(condition: Callable[[], bool], what: str | Callable[[], str], nodes: Iterable[LiteFSNode]) -> None:
    """Polls until `condition` is true; a mount that does not answer yet counts as false."""

    def holds() -> bool:
        with suppress(MountError):
            return condition()
        return False

    wait_until(holds, what, context=lambda: log_tails(nodes))


def log_tails(nodes: Iterable[LiteFSNode], lines: int = 20) -> str:
    """The end of each node's log."""
    return "\n".join(
        f"--- {node.name} ({'running' if node.pid else 'not running'})\n"
        + "\n".join(node.log.read_text().splitlines()[-lines:] if node.log.exists() else ())
        for node in nodes
    )
