"""The nodes that cluster.py runs on this machine: each with its own environment, directories and ports."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANAGE = [sys.executable, str(HERE / "manage.py")]
NAMES = ("node1", "node2", "node3")
START_SECONDS = 120
STOP_SECONDS = 30


class NodeError(Exception):
    """A node did not start or did not stop cleanly; the message says which and why."""


class Node:
    """One node of the site and the process that runs it; `show` prints its output as it comes."""

    def __init__(self, name: str, port: int, environment: dict[str, str], show: bool) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        # No control socket: it would be a file in the home directory.
        server = [sys.executable, "-m", "gunicorn", "board_site.wsgi", "--no-control-socket"]
        server += [f"--bind=127.0.0.1:{port}", "--workers=2", "--threads=4"]
        self.command = [*MANAGE, "litefs_run", "--migrate", "--", *server]
        self.show = show
        self.output: deque[str] = deque(maxlen=200)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        # A session of its own: Ctrl-C reaches this program alone, which then stops the nodes in turn.
        self.process = subprocess.Popen(
            self.command,
            cwd=HERE,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._pass_on, args=[self.process], daemon=True).start()

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output.append(f"{self.name} | {line}")
            if self.show:
                print(self.output[-1], end="", flush=True)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_until_it_answers(self) -> None:
        """Until its first page is there. Raises NodeError when that takes too long or it ends instead."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if not self.is_running():
                raise NodeError(f"{self.name} ended before it answered.")
            try:
                urllib.request.urlopen(self.url, timeout=30).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise NodeError(f"{self.name} did not answer within {START_SECONDS} s.") from None
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        """Stops it as systemd or Docker would. Raises NodeError unless it ends cleanly."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise NodeError(f"{self.name} did not stop within {STOP_SECONDS} s and was killed.") from None
        if code != 0:
            raise NodeError(f"{self.name} ended with exit code {code}.")

    def manage(self, *arguments: str, **environment: str) -> str:
        """Runs a manage.py command as this node. Raises NodeError with its output when it fails."""
        result = subprocess.run(
            [*MANAGE, *arguments],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if result.returncode != 0:
            raise NodeError(f"manage.py {arguments[0]} has failed on {self.name}:\n{result.stdout}")
        return result.stdout

    def pids(self) -> dict[str, int]:
        """The process ids of its LiteFS ("litefs") and of its application ("application"), as far as they run."""
        assert self.process is not None
        found: dict[str, int] = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with suppress(OSError):  # It may end meanwhile.
                is_litefs = Path(f"/proc/{pid}/comm").read_text().startswith("litefs")
                found["litefs" if is_litefs else "application"] = int(pid)
        return found


def cluster(directory: Path, show: bool) -> list[Node]:
    """Three nodes with a static lease; the first is the primary."""
    ports = iter(free_ports(2 * len(NAMES)))
    web_ports = {name: next(ports) for name in NAMES}
    members = {
        name: {"ADDRESS": "127.0.0.1", "URL": f"http://127.0.0.1:{web_ports[name]}", "HTTP_PORT": next(ports)}
        for name in NAMES
    }
    shared = {
        "SECRET_KEY": secrets.token_urlsafe(50),
        "LITEFS_NODES": json.dumps(members),
        "LITEFS_PRIMARY": NAMES[0],
        "LITEFS_SECRET": secrets.token_urlsafe(32),
    }
    nodes = []
    for name in NAMES:
        own = {
            "NODE": name,
            "LITEFS_MOUNT_PATH": str(directory / name / "mount"),
            "LITEFS_DATA_PATH": str(directory / name / "data"),
            "LITEFS_RUN_PATH": str(directory / name / "run"),
        }
        nodes.append(Node(name, web_ports[name], {**shared, **own}, show))
    return nodes


def plain_node(directory: Path) -> Node:
    """The same site on Django's own sqlite3, without LiteFS: without NODE it is switched off."""
    return Node("site", free_ports(1)[0], {"DATABASE_NAME": str(directory / "db.sqlite3")}, show=True)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def mounts_under(directory: Path) -> list[str]:
    """The mounts that a killed node left in the directory."""
    if not Path("/proc/self/mountinfo").exists():
        return []
    points = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if Path(point).is_relative_to(directory)]
