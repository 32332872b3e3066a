"""Real LiteFS whose lease is kept by lease processes of ours, one beside each node."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from litefs_django._litefs import config
from litefs_django._litefs.certificates import issue
from litefs_django._litefs.client import LiteFSClient
from litefs_django._litefs.node.lease.description import LeaseDescription
from litefs_django._litefs.node_file import NodeFileWriter, boottime_ns
from tests.cluster.nodes import Cluster, LiteFSNode, wait_for
from tests.machine import SECRET, free_ports, wait_until

KEY = "litefs"
ROOT = Path(__file__).parents[2]


class LeaseProcess:
    """One node's lease process, and the requests that LiteFS and a supervisor make of it."""

    def __init__(self, description: LeaseDescription, listener: socket.socket, directory: Path) -> None:
        self.description = description
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self.log = directory / "lease.log"
        self._file = directory / "lease.json"
        self._process: subprocess.Popen[bytes] | None = None
        description.run_path.mkdir(parents=True, exist_ok=True)
        self.node_file = NodeFileWriter(description.run_path)

    @property
    def url(self) -> str:
        return f"http://:{self.description.token}@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once its API answers."""
        self.description.write(self._file)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "litefs_django._litefs.node.lease", self._file],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[self._listener.fileno()],
            )
        wait_until(self._is_answering, "the lease process answers", context=self.log.read_text)

    def _is_answering(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            return self.call("GET", "/litefs_django/status")[0] == 200
        except (URLError, TimeoutError):
            return False

    def call(self, method: str, path: str, body: bytes = b"", token: str | None = None) -> tuple[int, str]:
        """Status and text of an answer."""
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"X-Consul-Token": self.description.token if token is None else token}
        try:
            with urlopen(Request(url, body or None, headers, method=method), timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.call("GET", "/litefs_django/status")[1])
        return answer

    def left(self) -> tuple[int, str]:
        """Says that LiteFS has ended, as a supervisor does."""
        return self.call("PUT", f"/litefs_django/left?until={boottime_ns() + 5_000_000_000}")

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(10)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self._listener.close()


class LeasedNode(LiteFSNode):
    """Its LiteFS has a shorter TTL than any that Consul takes."""

    def __init__(self, litefs: dict[str, Any], directory: Path, binary: Path, lease: LeaseProcess) -> None:
        consul = {"URL": lease.url, "KEY": KEY}
        super().__init__({"LEADER_ELECTION": "consul", "CONSUL": consul, **litefs}, directory, binary)
        self._ttl = lease.description.ttl

    def _write_config(self) -> None:
        content = config.ConfigGenerator(self.settings).config
        content["lease"]["consul"]["ttl"] = config.format_duration(self._ttl)
        self._config.write_text(config.render(content))


class LeaseCluster(Cluster):
    """`count` nodes of LiteFS, each with its lease process."""

    def __init__(self, count: int, directory: Path, binary: Path, ttl: float) -> None:
        names = [f"node{number}" for number in range(1, count + 1)]
        http, raft, relay = (dict(zip(names, free_ports(count), strict=True)) for _ in range(3))
        members, relays = ({name: f"127.0.0.1:{port}" for name, port in ports.items()} for ports in (raft, relay))
        self.leases: dict[str, LeaseProcess] = {}
        self.nodes = []
        for name in names:
            listener = socket.create_server(("127.0.0.1", 0))
            description = LeaseDescription(
                name=name,
                members=members,
                relays=relays,
                secrets=(SECRET,),
                urls={other: f"https://{address}" for other, address in relays.items()}
                | {name: f"http://127.0.0.1:{http[name]}"},
                identity=issue(name, (SECRET,)),
                ttl=ttl,
                directory=directory / name / "raft",
                data_path=directory / name / "data",
                is_bootstrap=False,
                listener=listener.fileno(),
                run_path=directory / name / "run",
                token=f"token-of-{name}",
                key=KEY,
                litefs_url=f"http://127.0.0.1:{http[name]}",
            )
            lease = self.leases[name] = LeaseProcess(description, listener, directory / name)
            nodes = {other: {"ADDRESS": "127.0.0.1", "HTTP_PORT": http[other]} for other in names}
            self.nodes.append(LeasedNode({"NODES": nodes, "NODE": name}, directory / name, binary, lease))

    def start(self) -> None:
        for lease in self.leases.values():
            lease.start()
        super().start()

    def clean_up(self) -> None:
        with ExitStack() as stack:
            for lease in self.leases.values():
                stack.callback(lease.close)
            stack.callback(super().clean_up)

    def lease(self, node: LiteFSNode) -> LeaseProcess:
        return self.leases[node.name]

    def lose(self, node: LiteFSNode) -> None:
        """kill -9 of a node's LiteFS, and what its supervisor says of it."""
        node.kill()
        assert self.lease(node).left()[0] == 200

    def hand_off(self, to: LiteFSNode) -> None:
        """Has the primary's LiteFS hand its lease to that node."""
        primary = self.primary
        node_id = LiteFSClient(f"http://127.0.0.1:{to.http_port}").info().node_id
        LiteFSClient(f"http://127.0.0.1:{primary.http_port}").hand_off(node_id)
        wait_for(to.is_primary, f"{to.name} is primary", self.nodes)

    def wait_primary(self, nodes: list[LiteFSNode]) -> LiteFSNode:
        """The one of the nodes that is primary."""
        (primary,) = wait_until(
            lambda: [node for node in nodes if node.is_primary()],
            f"one of {nodes} is primary",
            context=self.logs,
        )
        return primary

    def logs(self) -> str:
        texts = [(node.name, node.log, self.lease(node).log) for node in self.nodes]
        return "\n".join(
            f"--- {name}: {path.name}\n" + "\n".join(path.read_text().splitlines()[-25:])
            for name, *paths in texts
            for path in paths
            if path.exists()
        )


@contextmanager
def stopped(process: LeaseProcess) -> Iterator[None]:
    """A lease process that hangs."""
    process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send(signal.SIGCONT)
