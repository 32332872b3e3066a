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
# No control socket: it would be a file in the home directory.
GUNICORN = ("gunicorn", "board_site.wsgi", "--no-control-socket", "--workers=2", "--threads=4")
UVICORN = ("uvicorn", "board_site.asgi:application", "--lifespan=off")
START_SECONDS = 120
STOP_SECONDS = 30


class NodeError(Exception):
    """A node did not start or did not stop cleanly; the message says which and why."""


class Node:
    """One node of the site and the process that runs it; `show` prints its output as it comes."""

    def __init__(self, name: str, port: int, environment: dict[str, str], *, is_async: bool, show: bool) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        settings = {"DJANGO_SETTINGS_MODULE": "board_site.settings", **({"ASGI": "1"} if is_async else {})}
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **settings, **environment}
        server = (*UVICORN, f"--port={port}") if is_async else (*GUNICORN, f"--bind=127.0.0.1:{port}")
        self.command = [*MANAGE, "litefs_run", "--migrate", "--", sys.executable, "-m", *server]
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
        with process.stdout as lines:
            for line in lines:
                self.output.append(f"{self.name} | {line}")
                if self.show:
                    print(self.output[-1], end="", flush=True)

    @property
    def pid(self) -> int:
        """That of its litefs_run."""
        assert self.process is not None
        return self.process.pid

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def was_killed(self) -> bool:
        """Whether somebody has killed it. Raises NodeError when it has ended otherwise."""
        code = self.process.poll() if self.process is not None else None
        if code is None:
            return False
        self.process = None  # There is nothing to stop any more.
        if code != -signal.SIGKILL:
            raise NodeError(f"{self.name} ended ({how_it_ended(code)}): the example ends.")
        return True

    def kill(self) -> None:
        """kill -9 of all its processes, as when its machine loses power."""
        assert self.process is not None
        process, self.process = self.process, None
        for pid in [process.pid, *descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

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
            raise NodeError(f"{self.name} ended ({how_it_ended(code)}).")

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
                command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if command[1:2] == ["mount"]:
                    found["litefs"] = int(pid)
                elif {"gunicorn", "uvicorn"} & {*command}:
                    found["application"] = int(pid)
        return found


def descendants(pid: int) -> list[int]:
    """The process ids of its children, and of theirs."""
    found: list[int] = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def how_it_ended(code: int) -> str:
    """A return code of subprocess in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def cluster(directory: Path, *, is_async: bool, show: bool) -> list[Node]:
    """Three nodes that elect their primary. With `is_async` they run under ASGI."""
    keys = ("HTTP_PORT", "RAFT_PORT", "RELAY_PORT")
    ports = iter(free_ports((1 + len(keys)) * len(NAMES)))
    web_ports = {name: next(ports) for name in NAMES}
    # On machines of their own each would have the same ports, which are the defaults.
    members = {
        name: {
            "ADDRESS": "127.0.0.1",
            "URL": f"http://127.0.0.1:{web_ports[name]}",
            **{key: next(ports) for key in keys},
        }
        for name in NAMES
    }
    shared = {
        "SECRET_KEY": secrets.token_urlsafe(50),
        "LITEFS_NODES": json.dumps(members),
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
        nodes.append(Node(name, web_ports[name], {**shared, **own}, is_async=is_async, show=show))
    return nodes


def plain_node(directory: Path, *, is_async: bool) -> Node:
    """The same site on Django's own sqlite3, without LiteFS: with DEBUG it is switched off."""
    environment = {"DEBUG": "1", "DATABASE_NAME": str(directory / "db.sqlite3")}
    return Node("site", free_ports(1)[0], environment, is_async=is_async, show=True)


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
