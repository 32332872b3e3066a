"""Nodes run by the real `manage.py litefs_run`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import PrimaryDetector
from litefs_django._litefs.node_file import NodeFile
from tests.cluster.run.applications import IDLE, python
from tests.machine import SECRET, free_ports, mount_points, wait_until

ROOT = Path(__file__).parents[3]
MANAGE = Path(__file__).with_name("manage.py")
DATABASE = "db.sqlite3"
STATIC = {"LEADER_ELECTION": "static", "PRIMARY": "node1", "LITEFS_YML": {"lease": {"reconnect-delay": "100ms"}}}


class SupervisedNode:
    """One node of a cluster; as a context manager it leaves neither a process nor a mount behind."""

    def __init__(self, litefs: Mapping[str, Any], directory: Path, binary: Path) -> None:
        self.directory = directory
        self.binary = binary
        self.manage = MANAGE
        self.mount, self.data, self.run_path = directory / "mount", directory / "data", directory / "run"
        self.litefs = {
            "BINARY": str(binary),
            **litefs,
            "MOUNT_PATH": str(self.mount),
            "DATA_PATH": str(self.data),
            "RUN_PATH": str(self.run_path),
        }
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.cluster.project_settings",
            "LITEFS_TEST_DATABASE": DATABASE,
            "PYTHONPATH": str(ROOT),
        }
        self.prefix: list[str] = []  # before each command: where it is to run
        self.detector = PrimaryDetector(self.mount)
        self.node_file = NodeFile(self.run_path)
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self._reader: threading.Thread | None = None
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clean_up()

    def command(self, *arguments: str, application: Sequence[str] | None = None) -> list[str]:
        """`manage.py litefs_run` with these options; the application idles unless given."""
        return [sys.executable, str(self.manage), "litefs_run", *arguments, "--", *(application or python(IDLE))]

    def litefs_json(self) -> str:
        """LITEFS, for `tests.cluster.project_settings`."""
        return json.dumps(self.litefs)

    def start(
        self, *arguments: str, application: Sequence[str] | None = None, prefix: Sequence[str] = (), **options: Any
    ) -> None:
        """Starts it and returns at once."""
        self._start([*self.prefix, *prefix, *self.command(*arguments, application=application)], **options)

    def _start(self, command: Sequence[str], **options: Any) -> None:
        self.lines = []
        self.environment["LITEFS_TEST_LITEFS"] = self.litefs_json()
        self.process = subprocess.Popen(
            command,
            cwd=self.directory.parent,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **options},
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def start_as_witness(self) -> None:
        """Starts what only votes, and returns when it does."""
        self._start([sys.executable, str(self.manage), "litefs_run", "--witness"])
        self.wait_for_line("It votes.")

    def start_and_wait(self, *arguments: str, application: Sequence[str] | None = None, **options: Any) -> None:
        """Starts it and returns when the application has said its first line."""
        self.start(*arguments, application=application, **options)
        self.wait_for_line("app | ")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        lines = self.lines
        with process.stdout:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def output(self) -> str:
        return "\n".join(self.lines)

    def found(self, text: str) -> list[str]:
        """The lines that hold this text."""
        return [line for line in list(self.lines) if text in line]

    def wait_for_line(self, text: str, count: int = 1, timeout: float = 100.0) -> str:
        """The last of the first `count` lines with this text."""

        def enough() -> bool:
            if len(self.found(text)) >= count:
                return True
            assert self.process is None or self.process.poll() is None or len(self.found(text)) >= count, (
                f"litefs_run has ended: {self.process.returncode}\n{self.output()}"
            )
            return False

        wait_until(enough, f"{count} x {text!r}", timeout=timeout, context=self.output)
        return self.found(text)[count - 1]

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = 100.0) -> None:
        def holds() -> bool:
            with suppress(MountError, FileNotFoundError):
                return bool(condition())
            return False

        wait_until(holds, what, timeout=timeout, context=self.output)

    def follows(self, primary: SupervisedNode) -> bool:
        """Whether this node names `primary` and has ever been synchronised."""
        return self.detector.primary_name() == primary.name and self.detector.lag() is not None

    def children(self) -> list[psutil.Process]:
        """The living processes below the supervisor."""
        found = psutil.Process(self.pid).children(recursive=True)
        self._seen.update(found)
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def litefs_process(self) -> psutil.Process:
        """LiteFS itself, once it runs."""
        return self._the_child(of_litefs=True)

    def lease_processes(self) -> list[psutil.Process]:
        """Its lease process, if it has one now."""
        return [child for child in self.children() if "litefs_django._litefs.node.lease" in child.cmdline()]

    def application_process(self) -> psutil.Process:
        """The application's first process."""
        return self._the_child(of_litefs=False)

    def _the_child(self, *, of_litefs: bool) -> psutil.Process:
        def found() -> list[psutil.Process]:
            direct = [process for process in self.children() if process.ppid() == self.pid]
            leases = self.lease_processes()
            return [it for it in direct if it not in leases and self._is_litefs(it) == of_litefs]

        wait_until(lambda: len(found()) == 1, "one such child", context=self.output)
        return found()[0]

    def _is_litefs(self, process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(process.cmdline()[:2] == [self.litefs["BINARY"], "mount"])
        return False

    def is_serving(self) -> bool:
        with suppress(MountError):
            return self.detector.device() is not None and self.detector.lag() is not None
        return False

    def stop(self, timeout: float = 60.0, number: int = signal.SIGTERM) -> int:
        """A clean stop. Returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = 60.0) -> int:
        """Waits for litefs_run's end. Returns its exit code."""
        assert self.process is not None
        assert self._reader is not None
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"litefs_run did not end within {timeout} s\n{self.output()}") from None
        self._reader.join(5)
        return code

    def kill(self) -> None:
        """kill -9 of the supervisor."""
        self.children()
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def lose(self) -> None:
        """kill -9 of all its processes, as by a power cut."""
        processes = self.children()
        self.kill()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def clean_up(self) -> None:
        """Ends whatever is left, and unmounts."""
        if self.process is None:
            return
        if self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                self.children()
            self.process.kill()
            self.process.wait()
        for process in self._seen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._reader is not None:
            self._reader.join(5)
        while str(self.mount) in mount_points():
            subprocess.run(["fusermount3", "-uz", self.mount], check=True, capture_output=True)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Another process of the project on this node, in a group of its own, not a child of the supervisor."""
        self.environment["LITEFS_TEST_LITEFS"] = self.litefs_json()
        return subprocess.Popen(
            [*self.prefix, *command],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **options,
        )

    def run_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A manage.py command on this node; its errors are in stdout too."""
        self.environment["LITEFS_TEST_LITEFS"] = self.litefs_json()
        return subprocess.run(
            [*self.prefix, sys.executable, str(self.manage), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def http_port(self) -> int:
        port: int = self.litefs["NODES"][self.litefs["NODE"]]["HTTP_PORT"]
        return port

    def promote(self) -> None:
        """Makes this node the primary, and waits until it is. Nobody may be writing."""

        def is_accepted() -> bool:
            with socket.create_connection(("127.0.0.1", self.http_port), timeout=5) as connection:
                connection.sendall(b"POST /promote HTTP/1.0\r\n\r\n")
                answer: bytes = connection.makefile("rb").readline()
                return b" 200 " in answer

        self.wait_for(is_accepted, "POST /promote is accepted")
        self.wait_for(lambda: self.detector.is_primary(DATABASE), "this node is primary")

    @property
    def name(self) -> str:
        name: str = self.litefs["NODE"]
        return name

    def is_primary(self) -> bool:
        """Whether it may write; False while its LiteFS does not answer."""
        with suppress(MountError):
            return self.is_up() and self.detector.is_primary(DATABASE)
        return False

    def is_up(self) -> bool:
        """Whether the node file says that LiteFS serves."""
        generation = self.node_file.generation()
        return generation is not None and generation % 2 == 0

    def assert_nothing_left(self) -> None:
        """No process that was ever seen, no mount, no node file."""
        alive = [process for process in self._seen if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        assert not alive, self.output()
        assert str(self.mount) not in mount_points()
        assert not (self.run_path / "node").exists()


def static_nodes(count: int, directory: Path, binary: Path, **litefs: Any) -> list[SupervisedNode]:
    """Nodes of one cluster, none of them started; node1 is the primary."""
    return _nodes(count, directory, binary, {**STATIC, **litefs})


def raft_nodes(count: int, directory: Path, binary: Path, *, witnesses: int = 0, **litefs: Any) -> list[SupervisedNode]:
    """Nodes of one cluster that elect their primary themselves, none of them started; the last ones are witnesses."""
    nodes = _nodes(count, directory, binary, {"LEADER_ELECTION": "raft", "SECRET": SECRET, **litefs})
    ports = iter(free_ports(2 * count))
    members = nodes[0].litefs["NODES"]
    for member in members.values():
        member |= {"RAFT_PORT": next(ports), "RELAY_PORT": next(ports)}
    for node in nodes[count - witnesses :]:
        members[node.name]["WITNESS"] = True
    return nodes


def elected_nodes(count: int, directory: Path, binary: Path, lease: Mapping[str, Any]) -> list[SupervisedNode]:
    """Nodes of one cluster, none of them started; `lease` says how they elect their primary."""
    return _nodes(count, directory, binary, lease)


def wait_equal(nodes: Sequence[SupervisedNode], name: str = DATABASE) -> None:
    """Waits until all hold the database at the same position."""

    def positions() -> set[object]:
        return {node.detector.position(name) for node in nodes}

    nodes[0].wait_for(lambda: len(positions()) == 1 and None not in positions(), "the positions are equal", timeout=60)


def _nodes(count: int, directory: Path, binary: Path, litefs: Mapping[str, Any]) -> list[SupervisedNode]:
    names = [f"node{number}" for number in range(1, count + 1)]
    members = {
        name: {"ADDRESS": "127.0.0.1", "HTTP_PORT": port} for name, port in zip(names, free_ports(count), strict=True)
    }
    return [SupervisedNode({**litefs, "NODES": members, "NODE": name}, directory / name, binary) for name in names]
