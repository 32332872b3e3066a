"""What a LiteFS that works never answers; tests/cluster/test_client.py has what it does answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from litefs_django._litefs import client as client_module
from litefs_django._litefs.client import Info, LiteFSClient
from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.mount import Position

INFO = (
    b'{"clusterID": "LFSC1", "isPrimary": false, "candidate": true, "path": "/data", "primary": {"hostname": "web1"}}'
)


@contextmanager
def server(answers: dict[str, Any]) -> Iterator[str]:
    """An HTTP server in place of LiteFS, and its URL. An answer is a body, or takes the handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers[self.path]
            if callable(answer):
                answer(self)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as it:
        thread = threading.Thread(target=it.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{it.server_port}"
        it.shutdown()
        thread.join()


@pytest.fixture
def answering() -> Iterator[Callable[..., LiteFSClient]]:
    with ExitStack() as servers:

        def start(answers: dict[str, Any], timeout: float = 60.0) -> LiteFSClient:
            return LiteFSClient(servers.enter_context(server(answers)), timeout)

        yield start


Answering = Callable[..., LiteFSClient]


def metrics(*values: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """A replica's metrics with each of these lags in turn, the last for ever."""
    left = list(values)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        lag = left.pop(0) if len(left) > 1 else left[0]
        handler.wfile.write(
            b"# HELP litefs_lag_seconds Lag behind the primary node, in seconds\n"
            b'litefs_db_lag_seconds{db="db.sqlite3"} 5\n'
            b"litefs_is_primary 0\n" + f"litefs_lag_seconds {lag}\n".encode()
        )

    return answer


def dated(seconds: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """A node whose clock is that far ahead."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(200)
        handler.send_header("Date", formatdate(time.time() + seconds, usegmt=True))
        handler.end_headers()
        handler.wfile.write(INFO)

    return answer


@pytest.mark.parametrize("ahead", [0.0, 0.5, -42.25, 3600.0])
def test_clocks(answering: Answering, ahead: float) -> None:
    client, started = answering({"/info": dated(ahead)}), time.monotonic()
    least, most = client.clock_offset()
    assert least <= ahead <= most
    assert 1 <= most - least <= 1.01 + time.monotonic() - started


def test_no_date(answering: Answering) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(200)
        handler.end_headers()

    with pytest.raises(ClientError, match="not from LiteFS"):
        answering({"/info": answer}).clock_offset()


def test_info(answering: Answering) -> None:
    client = answering({"/info": INFO})
    assert client.info() == Info(is_primary=False, candidate=True, primary="web1", cluster_id="LFSC1", path="/data")


def test_a_node_without_primary_and_cluster(answering: Answering) -> None:
    info = answering({"/info": INFO.replace(b'"clusterID": "LFSC1", ', b"").replace(b"web1", b"")}).info()
    assert info.primary is None
    assert info.cluster_id is None


def test_positions(answering: Answering) -> None:
    databases = (
        b'{"db": {"txid": "000000000000000a", "checksum": "8f2a60e1c0d3b4a5"},'
        b' "empty": {"txid": "0000000000000000", "checksum": "0000000000000000"}}'
    )
    client = answering({"/debug/vars": b'{"memstats": {}, "store": {"dbs": ' + databases + b"}}"})
    assert client.positions() == {"db": Position(10, "8f2a60e1c0d3b4a5")}


@pytest.mark.parametrize(
    ("lags", "expected"),
    [((0.25,), 0.25), ((0.0,), None), ((0.0, 0.002), 0.002), ((1.5e-05,), 1.5e-05), ((-2.0,), -2.0)],
)
def test_a_lag_of_0_that_stays_means_never(
    answering: Answering, lags: tuple[float, ...], expected: float | None
) -> None:
    assert answering({"/metrics": metrics(*lags)}).lag() == expected


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"<html>", b"\xff", INFO.replace(b"false", b"0")])
def test_what_is_not_from_litefs(answering: Answering, body: bytes) -> None:
    client = answering(dict.fromkeys(("/info", "/debug/vars", "/metrics"), body))
    for call in (client.info, client.positions, client.lag):
        with pytest.raises(ClientError, match=rf"{client.base_url}/\S+ answered with something"):
            call()


def test_a_position_that_is_none(answering: Answering) -> None:
    client = answering({"/debug/vars": b'{"store": {"dbs": {"db": {"txid": "x", "checksum": "y"}}}}'})
    with pytest.raises(ClientError, match="something that is not from LiteFS"):
        client.positions()


def test_a_status_that_is_not_200(answering: Answering) -> None:
    client = answering({"/info": lambda handler: handler.send_error(404, "Not Found")})
    with pytest.raises(ClientError, match=r"/info answered 404 Not Found\. "):
        client.info()


def test_a_body_without_end(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_BODY", 1000)
    with pytest.raises(ClientError, match="/info answered with more than 1000 bytes"):
        answering({"/info": b" " * 1001}).info()


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "byte by byte"])
def test_it_waits_no_longer_than_its_timeout(answering: Answering, is_silent: bool) -> None:
    done = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not done.wait(0.01):
            if not is_silent:
                handler.wfile.write(b" ")

    client = answering({"/info": answer}, timeout=0.1)
    with pytest.raises(ClientError, match=r"/info did not answer within 0\.1 s"):
        client.info()
    done.set()


def test_a_server_that_speaks_otherwise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ClientError, match="did not answer: SSH"):
            LiteFSClient(f"http://127.0.0.1:{listener.getsockname()[1]}").info()
        thread.join()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ClientError, match=f"http://127.0.0.1:{port}/info did not answer: Connection refused"):
        LiteFSClient(f"http://127.0.0.1:{port}").info()


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(ClientError, match=r"http://no-such-host\.invalid:1/info did not answer"):
        LiteFSClient("http://no-such-host.invalid:1").info()


def test_no_proxy_of_the_environment_is_used(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert answering({"/info": INFO}).info().primary == "web1"
