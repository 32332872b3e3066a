"""The three nodes of a cluster, each with the tests' project behind a real application server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from http.cookies import SimpleCookie
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.cluster.nodes import DATABASE, Cluster, LiteFSNode
from tests.machine import CleanedUp, free_ports, wait_until

ROOT = Path(__file__).parents[3]
SECRET = "the secret of a cluster that only tests know"
SERVERS = ("gunicorn", "uvicorn")

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def environment(litefs: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """That of a process of the project with this LITEFS and these changes to its settings."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.cluster.handover.project_settings",
        "LITEFS_TEST_LITEFS": json.dumps(litefs),
        "LITEFS_TEST_DATABASE": DATABASE,
        "LITEFS_TEST_SETTINGS": json.dumps(settings),
        "PYTHONPATH": str(ROOT),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
    }


class SiteNode:
    """The application server of one node."""

    def __init__(self, litefs_node: LiteFSNode, port: int, server: str, directory: Path) -> None:
        self.litefs_node = litefs_node
        self.name = litefs_node.name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.server = server
        self.directory = directory
        self.litefs: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.log = directory / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        return environment(self.litefs, self.settings)

    def command(self) -> list[str]:
        if self.server == "gunicorn":
            options = [f"--bind=127.0.0.1:{self.port}", "--workers=2", "--threads=8", "--no-control-socket"]
            return [sys.executable, "-m", "gunicorn", "django.core.wsgi:get_wsgi_application()", *options]
        if self.server == "runserver":
            return [sys.executable, "-m", "django", "runserver", "--noreload", f"127.0.0.1:{self.port}"]
        options = ["--port", str(self.port), "--workers", "1", "--lifespan", "off", "--no-access-log"]
        return [sys.executable, "-m", "uvicorn", "--factory", "django.core.asgi:get_asgi_application", *options]

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.output()
            with suppress(OSError, http.client.HTTPException):
                return self.fetch("GET", "/ping/").status == 200
            return False

        wait_until(answers, f"{self.name} answers", context=self.output)

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def logged(self) -> list[str]:
        """What Django and we have logged."""
        return [line for line in self.output().splitlines() if line.startswith("LOG ")]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def fetch(
        self, method: str, path: str, body: Any = None, headers: Headers = (), *, timeout: float = 60.0, **kwargs: Any
    ) -> Reply:
        """One request by a client that does nothing by itself: no redirect, no header but Host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            send(connection, method, path, body, headers, **kwargs)
            response = connection.getresponse()
            return Reply(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def raw(self, data: bytes, *, timeout: float = 30.0) -> bytes:
        """What the server answers to these bytes until it closes the connection."""
        import socket

        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            with suppress(ConnectionResetError):
                while chunk := connection.recv(1 << 16):
                    received += chunk
            return received


def send(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any, headers: Headers, **kwargs: Any
) -> None:
    headers = list(headers)
    connection.putrequest(
        method, path, skip_accept_encoding=True, skip_host=any(name.lower() == "host" for name, _ in headers)
    )
    if isinstance(body, dict):
        body = urlencode(body).encode()
        headers.append(("Content-Type", "application/x-www-form-urlencoded"))
    if isinstance(body, bytes):
        headers.append(("Content-Length", str(len(body))))
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders(body, **kwargs)


class Browser:
    """Keeps cookies, which know no ports, and sends CSRF tokens."""

    def __init__(self) -> None:
        self.cookies: dict[str, str] = {}

    def fetch(self, node: SiteNode, method: str, path: str, body: Any = None, headers: Headers = ()) -> Reply:
        sent = list(headers)
        if self.cookies:
            sent.append(("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items())))
        if "csrftoken" in self.cookies:
            sent.append(("X-CSRFToken", self.cookies["csrftoken"]))
        reply = node.fetch(method, path, body, sent)
        for line in reply.all("Set-Cookie"):
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel.value
        return reply

    def get(self, node: SiteNode, path: str, **options: Any) -> Reply:
        return self.fetch(node, "GET", path, **options)

    def post(self, node: SiteNode, path: str, body: Any = b"", **options: Any) -> Reply:
        return self.fetch(node, "POST", path, body, **options)

    def follow(self, node: SiteNode, reply: Reply) -> Reply:
        """Where the reply redirects to, on that node."""
        assert reply.status in (301, 302, 303), reply
        location = urlsplit(reply.get("Location") or "")
        return self.get(node, location.path + (f"?{location.query}" if location.query else ""))


@cache
def prepared_database() -> bytes:
    """A SQLite file with the project's tables and its superuser."""
    with TemporaryDirectory() as directory:
        subprocess.run(
            [sys.executable, "-m", "tests.cluster.handover.prepare"],
            cwd=directory,
            env=environment({"ENABLED": False}, {}),
            check=True,
            timeout=120,
        )
        return (Path(directory) / DATABASE).read_bytes()


class Site(CleanedUp):
    """As a context manager it prepares the database, starts the servers, and leaves nothing behind."""

    def __init__(self, cluster: Cluster, server: str, directory: Path, **litefs: Any) -> None:
        self.cluster = cluster
        self._prepared = False
        ports = free_ports(len(cluster.nodes))
        self.nodes = [SiteNode(node, port, server, directory) for node, port in zip(cluster.nodes, ports, strict=True)]
        self.configure(**litefs)

    def configure(self, settings: Mapping[str, Any] | None = None, **litefs: Any) -> None:
        """Sets LITEFS keys, and settings of the project, for servers that are started after it."""
        urls = {node.name: {"URL": node.url, "PUBLIC_URL": node.url} for node in self.nodes}
        for node in self.nodes:
            base = node.litefs_node.litefs
            members = {name: {**member, **urls[name]} for name, member in base["NODES"].items()}
            node.litefs = {"SECRET": SECRET, "HANDOVER_TIMEOUT": 10, **base, "NODES": members, **litefs}
            node.settings = dict(settings or {})

    def start(self) -> None:
        if not self._prepared:
            self._prepared = True
            names = [DATABASE, *(["second.sqlite3"] if self.primary.settings.get("SECOND_DATABASE") else [])]
            for name in names:
                database = self.primary.litefs_node.mount / name
                with closing(sqlite3.connect(":memory:")) as content, closing(sqlite3.connect(database)) as target:
                    content.deserialize(prepared_database())
                    # It stays one of WAL, as the ENGINE makes them.
                    target.execute("PRAGMA journal_mode = WAL")
                    content.backup(target)
            self.cluster.wait_equal(*names)
        for node in self.nodes:
            if node.process is None or node.process.poll() is not None:
                node.start()
        for node in self.nodes:
            node.wait_until_it_answers()

    def clean_up(self) -> None:
        threads = [threading.Thread(target=node.stop) for node in self.nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def primary(self) -> SiteNode:
        (found,) = (node for node in self.nodes if node.litefs_node is self.cluster.primary)
        return found

    @property
    def replica(self) -> SiteNode:
        return self.replicas[0]

    @property
    def replicas(self) -> list[SiteNode]:
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    def wait_equal(self) -> None:
        self.cluster.wait_equal()

    def logs(self) -> str:
        return "\n".join(f"--- {node.name}\n{node.output()[-6000:]}" for node in self.nodes)


__all__ = ["SECRET", "SERVERS", "Browser", "Reply", "Site", "SiteNode", "send"]
