"""Streams through a replica, and clients that go away."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.site import Site, SiteNode, send
from tests.machine import wait_until

pytestmark = pytest.mark.cluster


@contextmanager
def opened(node: SiteNode, path: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
    try:
        send(connection, "POST", path, b"", ())
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def test_events_arrive_as_they_are_sent(site: Site) -> None:
    name = f"events-{site.replica.server}"
    with opened(site.replica, f"/events/?name={name}") as response:
        assert response.status == 200
        assert response.getheader("Content-Type") == "text/event-stream"
        assert response.read1() == b"data: first\n\n"
        # The second one is only sent when the first has arrived.
        assert site.primary.fetch("POST", "/post/", {"name": f"go {name}"}).status == 200
        assert response.read1() == b"data: second\n\n"
        assert response.read1() == b""


def test_a_client_that_hangs_up_ends_it_on_the_primary(site: Site) -> None:
    name = f"forever-{site.replica.server}"
    assert site.primary.fetch("POST", "/post/", {"name": f"go {name}"}).status == 200
    with opened(site.replica, f"/events/?name={name}&forever=1") as response:
        assert response.read1().startswith(b"data: first")
        assert f"ended {name}" not in site.primary.output()
    wait_until(lambda: f"ended {name}" in site.primary.output(), "the primary's stream has ended", context=site.logs)


def test_a_client_that_hangs_up_before_the_answer(site: Site) -> None:
    """ASGI servers tell at once; the request itself goes on where it has begun."""
    with socket.create_connection(("127.0.0.1", site.replica.port)) as connection:
        connection.sendall(b"POST /slow/?seconds=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.2)
    assert site.replica.fetch("POST", "/post/", {"name": f"after {site.replica.server}"}).status == 200


def test_an_upload_that_the_client_gives_up(site: Site) -> None:
    """The primary does not take the half for the whole."""
    before = site.primary.fetch("GET", "/authors/").json["names"]
    with socket.create_connection(("127.0.0.1", site.replica.port)) as connection:
        connection.sendall(b"POST /swallow/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n\r\n")
        connection.sendall(b"x" * 4_000_000)
    with socket.create_connection(("127.0.0.1", site.replica.port)) as connection:
        head = b"POST /post/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        connection.sendall(head + b"Content-Length: 100\r\n\r\nname=half")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100)[:12] in (b"", b"HTTP/1.1 400")
    assert site.replica.fetch("POST", "/post/", {"name": f"whole {site.replica.server}"}).status == 200
    after = site.primary.fetch("GET", "/authors/").json["names"]
    assert set(after) - set(before) == {f"whole {site.replica.server}"}


def test_a_slow_upload_holds_up_no_writer(site: Site) -> None:
    name = f"slow {site.replica.server}"
    body = f"name={name.replace(' ', '+')}".encode()
    with socket.create_connection(("127.0.0.1", site.replica.port), timeout=30) as connection:
        head = f"POST /post/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + body[:5])
        for number in range(20):
            assert site.replica.fetch("POST", "/post/", {"name": f"{name} {number}"}).status == 200
        connection.sendall(body[5:])
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200")


def test_a_range(site: Site) -> None:
    reply = site.replica.fetch("POST", "/ranged/", b"", [("Range", "bytes=10-19")])
    assert (reply.status, reply.body) == (206, bytes(range(10, 20)))
    assert reply.get("Content-Range") == "bytes 10-19/100"


def test_expect(site: Site) -> None:
    """The replica's own server says 'continue'; the primary is not asked."""
    with socket.create_connection(("127.0.0.1", site.replica.port), timeout=30) as connection:
        head = b"POST /who/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
        connection.sendall(head + b"Connection: close\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100")
        connection.sendall(b"abc")
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200")
    assert b'"Expect"' not in received


def test_head(site: Site) -> None:
    here, there = (node.fetch("HEAD", "/answer/?status=200") for node in (site.primary, site.replica))
    assert there.get("X-Node") == site.primary.name
    assert (there.status, there.body, there.get("Content-Length")) == (200, b"", here.get("Content-Length"))


def test_a_chunked_body(site: Site) -> None:
    """Under WSGI Django itself sees none (there is no Content-Length); under ASGI the whole of it."""
    request = b"POST /who/ HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    request += b"3\r\nabc\r\n" + b"5\r\ndefgh\r\n" + b"0\r\n\r\n"
    here, there = (node.raw(request).partition(b"\r\n\r\n")[2] for node in (site.primary, site.replica))
    length = b'"length": 0' if site.replica.server == "gunicorn" else b'"length": 8'
    assert length in here
    assert length in there


def test_a_chunked_body_whose_end_is_not_shown(start_site: StartSite) -> None:
    """Django's development server gives its bytes as they are, without wsgi.input_terminated."""
    site = start_site("runserver")
    headers = [("Transfer-Encoding", "chunked"), ("Accept", "application/json")]
    reply = site.replica.fetch("POST", "/who/", iter([b"abc"]), headers, encode_chunked=True)
    assert (reply.status, reply.json["title"]) == (411, "Length required")
    # Others it serves like any server.
    reply = site.replica.fetch("POST", "/who/", b"abc")
    assert (reply.status, reply.json["node"], reply.json["length"]) == (200, site.primary.name, 3)


def test_memory_stays_as_it_is(site: Site) -> None:
    """200 MiB up and down, by four at a time."""

    def memory() -> int:
        assert node.process is not None
        process = psutil.Process(node.process.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))

    node = site.replica
    body = bytes(50 << 20)

    def go() -> None:
        assert node.fetch("POST", "/swallow/", body).status == 200
        assert len(node.fetch("POST", "/big/?megabytes=50", b"").body) == 50 << 20

    go()
    before = memory()
    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, memory())
        time.sleep(0.01)
    assert most - before < 30 << 20, f"{(most - before) >> 20} MiB more"
