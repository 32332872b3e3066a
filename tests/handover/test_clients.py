"""Both clients against a server that says what a test tells it to: what real servers rarely say."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from litefs_django.handover import aiohttp_client, http_client
from litefs_django.handover.exchange import Body
from litefs_django.handover.transport import (
    CHUNK,
    IDLE,
    MOST_HEADERS,
    Broken,
    ClientGone,
    Forwarded,
    NotSent,
    Outgoing,
    let_go,
)
from tests.machine import deaf_url, wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request on a connection with the next of its answers, and keeps what it was sent.

    After an answer of None, and after the last one, it closes the connection.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = 0
        self._open: socket.socket | None = None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open = connection
            with connection, suppress(OSError):
                while self.answers and (request := self._read(connection)):
                    self.requests.append(request)
                    answer = self.answers.pop(0)
                    if answer is None:
                        break
                    connection.sendall(answer)
            self.closed += 1

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(1 << 16)
            if not chunk:
                return b""
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0)
        while len(body) < length and (chunk := connection.recv(1 << 16)):
            body += chunk
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        if self._open is not None:
            with suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


StartServer = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[StartServer]:
    servers: list[Server] = []

    def start(*answers: bytes | None) -> Server:
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Got:
    """A response, read to its end."""

    def __init__(self, response: Forwarded, body: bytes) -> None:
        self.status, self.reason, self.body = response.status_code, response.reason_phrase, body
        self.headers = list(response.items())


class Client:
    """Either of the two; one event loop for all that it sends."""

    def __init__(self, is_async: bool) -> None:
        self.runner = asyncio.Runner() if is_async else None

    def send(self, server: Server | str, *, method: str = "POST", target: str = "/", **changes: Any) -> Got:
        options = {
            "headers": [("Host", "x")],
            "body": Body(data=b""),
            "timeout": 60.0,
            "connect_timeout": 2.0,
            **changes,
        }
        outgoing = Outgoing(
            url=server if isinstance(server, str) else server.url, method=method, target=target, **options
        )
        if self.runner is None:
            response = http_client.send(outgoing)
            try:
                return Got(response, b"".join(response))
            finally:
                let_go(response)
        return self.runner.run(self._asend(outgoing))

    def rest(self, seconds: float) -> None:
        """Time goes by, in the event loop too."""
        if self.runner is None:
            time.sleep(seconds)
        else:
            self.runner.run(asyncio.sleep(seconds))

    @staticmethod
    async def _asend(outgoing: Outgoing) -> Got:
        response = await aiohttp_client.send(outgoing)
        try:
            return Got(response, b"".join([chunk async for chunk in response]))
        finally:
            let_go(response)


@pytest.fixture(params=[False, True], ids=["wsgi", "asgi"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client(request.param)
    yield client
    if client.runner is not None:
        client.runner.close()


@pytest.fixture(autouse=True)
def empty_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections that wait in the pool are closed with the test."""
    pool = http_client._Pool()
    monkeypatch.setattr(http_client, "_pool", pool)
    yield
    for waiting in pool._idle.values():
        for _, connection in waiting:
            connection.close()


def test_what_is_on_the_wire(client: Client, serve: StartServer) -> None:
    """The target as it is, and no header that was not given."""
    server = serve(OK)
    headers = [("Host", "www.example.com"), ("X-One", "1"), ("X-One", "2"), ("Content-Length", "3")]
    client.send(server, method="PATCH", target="//a/%e4/../100%?x=%7e|", headers=headers, body=Body(data=b"abc"))
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    assert (line, body) == (b"PATCH //a/%e4/../100%?x=%7e| HTTP/1.1", b"abc")
    assert sorted(lines) == [b"Content-Length: 3", b"Host: www.example.com", b"X-One: 1", b"X-One: 2"]


def test_informational_answers_are_skipped(client: Client, serve: StartServer) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    got = client.send(serve(early + OK))
    assert (got.status, got.body) == (200, b"ok")
    assert got.headers == [("Content-Length", "2")]


def test_headers_come_back_as_they_are(client: Client, serve: StartServer) -> None:
    head = (
        b"HTTP/1.1 299 Odd\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nX-Odd: \xe4 b\r\nContent-Length: 0\r\n\r\n"
    )
    got = client.send(serve(head))
    assert (got.status, got.reason) == (299, "Odd")
    assert got.headers == [
        ("Set-Cookie", "a=1; Path=/"),
        ("Set-Cookie", "b=2"),
        ("X-Odd", "\xe4 b"),
        ("Content-Length", "0"),
    ]


def test_headers_of_any_size_that_a_server_sends(client: Client, serve: StartServer) -> None:
    """Content-Security-Policy may well be one."""
    head = b"HTTP/1.1 200 OK\r\nX-Long: %s\r\n" % (b"x" * 20_000)
    many = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 100) for number in range(1000))
    got = client.send(serve(head + many + b"Content-Length: 2\r\n\r\nok"))
    assert len(dict(got.headers)["X-Long"]) == 20_000
    assert [name for name, _ in got.headers[1:-1]] == [f"X-{number}" for number in range(1000)]
    assert (got.headers[-1], got.body) == (("Content-Length", "2"), b"ok")


def test_more_headers_than_any_server_sends(client: Client, serve: StartServer) -> None:
    many = b"".join(b"X-%d: y\r\n" % number for number in range(MOST_HEADERS + 1))
    with pytest.raises(Broken):
        client.send(serve(b"HTTP/1.1 200 OK\r\n" + many + b"\r\n"))


def test_half_a_head(client: Client, serve: StartServer) -> None:
    with pytest.raises(Broken):
        client.send(serve(b"HTTP/1.1 200 OK\r\nContent-Le"))


def test_an_encoded_body_stays_encoded(client: Client, serve: StartServer) -> None:
    got = client.send(serve(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"))
    assert got.body == b"abc"


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_are_not_followed(client: Client, serve: StartServer, status: int) -> None:
    server = serve(b"HTTP/1.1 %d X\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n" % status, OK)
    assert client.send(server).status == status
    assert len(server.requests) == 1


def test_no_connection(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NotSent):
        client.send(f"http://127.0.0.1:{port}")
    with pytest.raises(NotSent):
        client.send("http://no-such-host.invalid:80")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "GET"])
def test_what_was_sent_is_never_sent_again(client: Client, serve: StartServer, method: str) -> None:
    """On a new connection and on one that was used before, whose other side has just closed it."""
    server = serve(None, OK)
    with pytest.raises(Broken):
        client.send(server, method=method)
    assert len(server.requests) == 1
    server = serve(OK, None, OK)
    client.send(server, method=method)
    with pytest.raises(Broken):
        client.send(server, method=method)
    assert (len(server.requests), server.connections) == (2, 1)


@pytest.mark.parametrize("timeout", [0.2, 5.0])
def test_a_machine_that_swallows_packets(client: Client, timeout: float) -> None:
    with deaf_url() as url:
        began = time.monotonic()
        with pytest.raises(NotSent):
            client.send(url, timeout=timeout, connect_timeout=0.1)
        assert time.monotonic() - began < 1


def test_no_answer_in_time(client: Client, serve: StartServer) -> None:
    with pytest.raises(Broken):
        client.send(serve(b""), timeout=0.2)


def test_a_body_that_takes_longer_than_the_time_for_a_part_of_it(client: Client, serve: StartServer) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep(0.3)
            return super().read(size)

    size = 8 * CHUNK
    headers = [("Host", "x"), ("Content-Length", str(size))]
    got = client.send(serve(OK), headers=headers, body=Body(stream=Slow(bytes(size)), length=size), timeout=2.0)
    assert got.status == 200


def test_garbage(client: Client, serve: StartServer) -> None:
    with pytest.raises(Broken):
        client.send(serve(b"garbage\r\n\r\n"))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhalf",
    ],
)
def test_half_a_body_is_not_taken_for_the_whole(client: Client, serve: StartServer, answer: bytes) -> None:
    with pytest.raises(Exception, match=r"(?i)incomplete|payload|closed|not enough"):
        client.send(serve(answer))


def test_an_answer_before_the_body_was_read(client: Client, serve: StartServer) -> None:
    """A server may refuse a large body after a look at its head."""
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.2)

    thread = threading.Thread(target=refuse)
    thread.start()
    size = 50_000_000
    body = Body(stream=io.BytesIO(bytes(size)), length=size)
    headers = [("Host", "x"), ("Content-Length", str(size))]
    try:
        got = client.send(f"http://127.0.0.1:{listener.getsockname()[1]}", headers=headers, body=body)
        assert got.status == 413
    finally:
        thread.join()
        listener.close()


def test_connections_are_used_again_but_not_old_ones(client: Client, serve: StartServer) -> None:
    server = serve(*[OK] * 4)
    client.send(server)
    client.send(server)
    assert server.connections == 1
    client.rest(IDLE + 0.2)
    client.send(server)
    assert server.connections == 2


def test_one_that_the_other_side_has_closed_is_not_used(client: Client, serve: StartServer) -> None:
    server = serve(OK)
    client.send(server)
    wait_until(lambda: server.closed, "it is closed")
    client.rest(0.1)
    server.answers.append(OK)
    assert client.send(server).status == 200
    assert server.connections == 2


def test_an_upload_that_the_client_gives_up(serve: StartServer) -> None:
    """Under ASGI Django has had all of it before."""
    body = Body(stream=io.BytesIO(b"half"), length=10)
    with pytest.raises(ClientGone):
        Client(False).send(serve(OK), headers=[("Host", "x"), ("Content-Length", "10")], body=body)


def test_none_is_shared_across_a_fork(serve: StartServer) -> None:
    server = serve(*[OK] * 4)
    client = Client(False)
    client.send(server)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if client.send(server).status == 200 else 1)
        except BaseException:
            os._exit(1)
    # The child cannot be served while its parent's connection is: so it gets it first.
    client.send(server)
    server.answers.clear()
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert server.requests[0] == server.requests[1]
