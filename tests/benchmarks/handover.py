"""What it costs that a replica takes a request: on the way to the primary, and for its own.

Under gunicorn and uvicorn (with what uvicorn[standard] brings) each, on three real nodes: PAIRS small POSTs straight to
the primary and through a replica in turn, each by a client that keeps its connection, and beside them a GET that the
replica's second middleware answers at once: so much of what is added are the server and Django. Then BODY bytes up and
down, in turn too, with the memory of the replica's processes meanwhile against before. Last, a GET that a node answers
itself, with the middleware and without it, in this one process.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from tests.cluster.handover.site import SERVERS, Site, SiteNode
from tests.cluster.nodes import StaticCluster
from tests.machine import fuse_problem, litefs

PAIRS = 5000
BODY = 1 << 30
CHUNK = 1 << 16
ROUNDS = 3

MAXIMUM_P50 = 3.0
MAXIMUM_P99 = 15.0
MAXIMUM_MEMORY = 30.0
MINIMUM_RATE_RATIO = 0.4
MAXIMUM_LOCAL = 50.0

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def run() -> list[dict[str, Any]]:
    """One row for each figure that has a target."""
    if problem := fuse_problem():
        raise SystemExit(problem)
    figures: list[dict[str, Any]] = []
    for server in SERVERS:
        with tempfile.TemporaryDirectory(prefix="litefs-bench-") as directory:
            path = Path(directory)
            with StaticCluster(3, path, litefs()) as cluster, _site(cluster, server, path) as site:
                figures += _posts(server, site)
                figures += _bodies(server, site)
                figures += _local(server, site.replica)
    return figures


def _site(cluster: StaticCluster, server: str, directory: Path) -> Site:
    site = Site(cluster, server, directory)
    # As the documentation says for each.
    site.configure({"CONN_MAX_AGE": None if server == "gunicorn" else 0})
    return site


def table(figures: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["server", "figure", "directly", "through a replica", "difference or ratio", "target"]]
    for row in figures:
        values = [f"{row[key]:.2f}" for key in ("direct", "through", "value")]
        lines.append([row["server"], row["figure"], *values, row["target"]])
    return lines


def _row(server: str, figure: str, direct: float, through: float, value: float, target: str) -> dict[str, Any]:
    return {
        "server": server,
        "figure": figure,
        "direct": direct,
        "through": through,
        "value": value,
        "target": target,
    }


def _posts(server: str, site: Site) -> Iterator[dict[str, Any]]:
    direct, through, at_once = _Client(site.primary), _Client(site.replica), _Client(site.replica)
    for number in range(-200, PAIRS):
        clients = [direct, through, at_once]
        for client in clients if number % 2 else reversed(clients):
            if client is at_once:
                client.send("GET", "/at-once/", None, is_counted=number >= 0)
            else:
                name = f"{'d' if client is direct else 't'}{number}"
                client.send("POST", "/post/", f"name={name}", is_counted=number >= 0)
    for name, cut, most in (("p50", 49, MAXIMUM_P50), ("p99", 98, MAXIMUM_P99)):
        theirs, ours, least = (quantiles(client.times, n=100)[cut] for client in (direct, through, at_once))
        yield _row(server, f"small POST, {name} ms", theirs, ours, ours - theirs, f"<= {most}")
        yield _row(server, f"GET answered at once, {name} ms", 0.0, least, least, "")


class _Client:
    def __init__(self, node: SiteNode) -> None:
        self.times: list[float] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", node.port)

    def send(self, method: str, path: str, form: str | None, *, is_counted: bool) -> None:
        began = time.perf_counter()
        self._connection.request(method, path, form, FORM)
        response = self._connection.getresponse()
        body = response.read()
        if is_counted:
            self.times.append((time.perf_counter() - began) * 1000)
        assert response.status == 200, body


def _bodies(server: str, site: Site) -> Iterator[dict[str, Any]]:
    for way, transfer in (("up", _up), ("down", _down)):
        transfer(site.replica, BODY >> 4)
        rates: dict[str, list[float]] = {"direct": [], "through": []}
        before, most = _memory(site.replica), 0
        for _ in range(ROUNDS):
            rates["direct"].append(_rate(site.primary, transfer))
            with _Watched(site.replica) as watched:
                rates["through"].append(_rate(site.replica, transfer))
            most = max(most, watched.most)
        direct, through = (median(rates[key]) for key in ("direct", "through"))
        ratio = median(t / d for t, d in zip(rates["through"], rates["direct"], strict=True))
        yield _row(server, f"1 GiB {way}, MiB/s", direct, through, ratio, f">= {MINIMUM_RATE_RATIO}")
        more = (most - before) / (1 << 20)
        yield _row(
            server, f"1 GiB {way}, MiB of memory", before / (1 << 20), most / (1 << 20), more, f"<= {MAXIMUM_MEMORY}"
        )


def _rate(node: SiteNode, transfer: Callable[[SiteNode, int], None]) -> float:
    began = time.perf_counter()
    transfer(node, BODY)
    return BODY / (1 << 20) / (time.perf_counter() - began)


def _up(node: SiteNode, length: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", node.port)
    chunk = bytes(CHUNK)
    headers = {"Content-Length": str(length)}
    connection.request("POST", "/drain/", (chunk for _ in range(length // CHUNK)), headers)
    response = connection.getresponse()
    answer = response.read()
    assert json.loads(answer)["length"] == length, answer
    connection.close()


def _down(node: SiteNode, length: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", node.port)
    connection.request("POST", f"/big/?megabytes={length >> 20}&length=1", b"")
    response = connection.getresponse()
    received = 0
    while chunk := response.read(1 << 20):
        received += len(chunk)
    assert received == length
    connection.close()


def _memory(node: SiteNode) -> int:
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


class _Watched:
    """The most memory that the node has during a block."""

    def __init__(self, node: SiteNode) -> None:
        self.most = 0
        self._node = node
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            self.most = max(self.most, _memory(self._node))

    def __enter__(self) -> _Watched:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()


# A GET that nothing is to be done for, in microseconds of the processor: without the middleware and with it, in turn.
LOCAL = """
import asyncio, io, json, statistics, sys, time, timeit
import django
django.setup()
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse
from litefs_django.middleware import LiteFSMiddleware
response = HttpResponse()
NUMBER = 2000
if sys.argv[1] == "gunicorn":
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/authors/", "SERVER_NAME": "x", "SERVER_PORT": "80",
               "wsgi.input": io.BytesIO(), **{f"HTTP_X_{number}": "x" for number in range(20)}}
    def bare(request):
        return response
    handlers = (bare, LiteFSMiddleware(bare))
    def once(handler):
        requests = iter([WSGIRequest(dict(environ)) for _ in range(NUMBER)])
        return timeit.timeit(lambda: handler(next(requests)), number=NUMBER, timer=time.process_time)
else:
    scope = {"type": "http", "method": "GET", "path": "/authors/", "query_string": b"", "server": ("x", 80),
             "client": ("x", 1), "headers": [(b"x-%d" % number, b"x") for number in range(20)]}
    async def bare(request):
        return response
    handlers = (bare, LiteFSMiddleware(bare))
    async def many(handler, requests):
        began = time.process_time()
        for request in requests:
            await handler(request)
        return time.process_time() - began
    def once(handler):
        return asyncio.run(many(handler, [ASGIRequest(scope, io.BytesIO()) for _ in range(NUMBER)]))
times = [[once(handler) / NUMBER * 1e6 for handler in handlers] for _ in range(15)]
print(json.dumps([statistics.median(column) for column in zip(*times)]))
"""


def _local(server: str, node: SiteNode) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-c", LOCAL, server]
    output = subprocess.run(command, env=node.environment(), capture_output=True, text=True, check=True).stdout
    bare, ours = json.loads(output)
    yield _row(server, "local GET, us", bare, ours, ours - bare, f"<= {MAXIMUM_LOCAL}")
