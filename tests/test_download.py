from __future__ import annotations

import gzip
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest

from litefs_django._litefs import binary, download
from litefs_django._litefs.errors import BinaryError
from tests.machine import free_ports, wait_until

DOWNLOAD = "import sys; from pathlib import Path; from litefs_django._litefs.download import download\n" + (
    "url, sha256, target = sys.argv[1:]; download(url, sha256, Path(target), None)"
)
OLD = "what stood there"


class Handler(BaseHTTPRequestHandler):
    """Answers a path with what `Server.answers` does for it."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.answers[self.path](self)

    def answer(self, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(200 if not headers else 302)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A real HTTP server on loopback, in threads."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server_port}"
        self.answers: dict[str, Callable[[Handler], None]] = {}
        self.asked: list[str] = []
        self.ended = threading.Event()

    def serve(self, path: str, content: bytes) -> str:
        """Returns the URL."""
        self.answers[path] = lambda handler: handler.answer(content, len(content))
        return self.url + path

    def redirect(self, path: str, location: str) -> str:
        self.answers[path] = lambda handler: handler.answer(b"", 0, Location=location)
        return self.url + path

    def stall(self, path: str, content: bytes) -> str:
        """Half of it comes, and no more."""

        def answer(handler: Handler) -> None:
            handler.answer(content[: len(content) // 2], len(content))
            self.ended.wait()

        self.answers[path] = answer
        return self.url + path

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever has had enough hangs up."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "localhost")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where something stands already, alone in its directory."""
    (tmp_path / "target").mkdir()
    path = tmp_path / "target" / "litefs"
    path.write_text(OLD)
    return path


@pytest.fixture(scope="module")
def real(litefs_binary: Path) -> bytes:
    return litefs_binary.read_bytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_untouched(target: Path) -> bool:
    return target.read_text() == OLD and list(target.parent.iterdir()) == [target]


def refusal(url: str, target: Path, hash_wanted: str = "0" * 64, architecture: str | None = None) -> str:
    """What is said of a URL that cannot be installed; nothing is."""
    with pytest.raises(BinaryError) as caught:
        download.download(url, hash_wanted, target, architecture)
    assert is_untouched(target)
    assert url in str(caught.value)
    return str(caught.value)


class TestInstalls:
    def test_over_http(self, server: Server, target: Path, real: bytes) -> None:
        lines: list[str] = []
        url = server.serve("/litefs", real)
        download.download(url, sha256(real), target, None, lines.append)
        assert target.read_bytes() == real
        assert target.stat().st_mode & 0o7777 == 0o755
        assert list(target.parent.iterdir()) == [target]
        assert lines == [f"Downloading {url}"]
        binary.verify(target)

    def test_past_what_a_killed_one_has_left(self, server: Server, target: Path, real: bytes) -> None:
        """With this process's number, which comes again in a container, and with another."""
        with subprocess.Popen(["true"]) as ended:
            pass
        for number in (os.getpid(), ended.pid, os.getppid()):
            target.with_name(f".litefs.{number}").write_text("half of it")
        download.download(server.serve("/litefs", real), sha256(real), target, None)
        assert target.read_bytes() == real
        # That of a process that runs is its own.
        assert sorted(path.name for path in target.parent.iterdir()) == [f".litefs.{os.getppid()}", "litefs"]

    def test_shows_progress(self, server: Server, target: Path, real: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "_HEARTBEAT", 0.0)
        lines: list[str] = []
        download.download(server.serve("/litefs", real), sha256(real), target, None, lines.append)
        sizes = [re.fullmatch(rf"(\d+\.\d) of {len(real) / 1e6:.1f} MB", line) for line in lines[1:]]
        assert all(sizes)
        assert sizes[-1] is not None
        assert float(sizes[-1][1]) == round(len(real) / 1e6, 1)

    def test_from_a_file(self, target: Path, litefs_binary: Path, real: bytes) -> None:
        download.download(litefs_binary.as_uri(), sha256(real), target, None)
        assert target.read_bytes() == real

    def test_after_redirects(self, server: Server, target: Path, real: bytes) -> None:
        server.redirect("/there", server.serve("/litefs", real))
        download.download(server.redirect("/here", "/there"), sha256(real), target, None)
        assert server.asked == ["/here", "/there", "/litefs"]
        assert target.read_bytes() == real

    def test_without_a_declared_length(self, server: Server, target: Path, real: bytes) -> None:
        server.answers["/litefs"] = lambda handler: handler.answer(real)
        download.download(f"{server.url}/litefs", sha256(real), target, None)
        assert target.read_bytes() == real

    def test_over_https_alone_where_the_certificate_is_trusted(
        self, server: Server, target: Path, real: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
        request += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
        try:
            subprocess.run(request, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl is not installed")
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        url = server.serve("/litefs", real).replace("http:", "https:")
        assert "certificate" in refusal(url, target, sha256(real))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        download.download(url, sha256(real), target, None)
        assert target.read_bytes() == real


class TestRefuses:
    def test_another_hash(self, server: Server, target: Path, real: bytes) -> None:
        said = refusal(server.serve("/litefs", real), target)
        assert f"has the SHA-256 {sha256(real)}, not {'0' * 64}. Nothing was installed." in said

    def test_what_is_not_litefs(self, server: Server, target: Path) -> None:
        """A script stands in for another release."""
        other = b"#!/bin/sh\necho LiteFS v0.5.11, commit=63eab52\n"
        said = refusal(server.serve("/litefs", other), target, sha256(other))
        assert "is of no use here. Nothing was installed." in said
        assert "printed 'LiteFS v0.5.11" in said

    def test_an_archive(self, server: Server, target: Path, real: bytes) -> None:
        """As LiteFS's own releases are."""
        packed = gzip.compress(real, 1)
        said = refusal(server.serve("/litefs.tar.gz", packed), target, sha256(packed))
        assert "is an archive" in said
        assert "Unpack it" in said

    def test_another_machines(self, server: Server, target: Path, real: bytes) -> None:
        foreign = next(name for name in binary.ARCHITECTURES.values() if name != binary.native_architecture())
        said = refusal(server.serve("/litefs", real), target, sha256(real), foreign)
        assert f"is not a program for Linux on {foreign}" in said

    @pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://localhost/litefs"])
    def test_redirects_to_anything_but_http(self, server: Server, target: Path, location: str) -> None:
        said = refusal(server.redirect("/litefs", location), target)
        assert "not allowed" in said or "unknown url type: ftp" in said

    def test_redirects_without_end(self, server: Server, target: Path) -> None:
        assert "infinite loop" in refusal(server.redirect("/litefs", "/litefs"), target)

    def test_more_than_it_can_be(self, server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "_MAX_SIZE", 1_000_000)

        def endless(handler: Handler) -> None:
            handler.answer(b"")
            while True:
                handler.wfile.write(b"x" * 10000)

        server.answers["/litefs"] = endless
        assert "it has more than 1 MB, and LiteFS has 15" in refusal(f"{server.url}/litefs", target)
        assert "it has more than 1 MB" in refusal("file:///dev/zero", target)

    def test_half_of_it(self, server: Server, target: Path) -> None:
        server.answers["/litefs"] = lambda handler: handler.answer(b"x" * 50, 100)
        assert "the answer ended after 50 of 100 bytes" in refusal(f"{server.url}/litefs", target)

    def test_silence(self, server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "_SILENCE", 0.2)
        assert "timed out" in refusal(server.stall("/litefs", b"x" * 100), target)

    def test_a_trickle(self, server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "_DEADLINE", 0.2)

        def trickle(handler: Handler) -> None:
            handler.answer(b"")
            while not server.ended.is_set():
                handler.wfile.write(b"x")
                time.sleep(0.01)

        server.answers["/litefs"] = trickle
        assert "it was not there after 0.2 s" in refusal(f"{server.url}/litefs", target)

    def test_what_is_not_there(self, server: Server, target: Path, tmp_path: Path) -> None:
        server.answers["/litefs"] = lambda handler: handler.send_error(404)
        assert f"404 Not Found ({server.url}/litefs). Nothing was installed." in refusal(f"{server.url}/litefs", target)
        assert "Connection refused" in refusal(f"http://127.0.0.1:{free_ports(1)[0]}/litefs", target)
        assert "No such file or directory" in refusal((tmp_path / "missing").as_uri(), target)

    @pytest.mark.parametrize("url", ["litefs", "ftp://localhost/litefs", "/usr/bin/litefs", "http:/litefs"])
    def test_what_is_no_url(self, target: Path, url: str) -> None:
        assert "a URL that begins with https:// or http:// or file:// is needed" in refusal(url, target)

    @pytest.mark.parametrize("url", ["http://", "http://[::1/litefs", "http://localhost:port/litefs", "http://x/a b"])
    def test_a_url_that_cannot_be(self, target: Path, url: str) -> None:
        assert "could not be downloaded: " in refusal(url, target)

    def test_where_it_cannot_be_written(self, server: Server, tmp_path: Path, real: bytes) -> None:
        url = server.serve("/litefs", real)
        with pytest.raises(BinaryError, match=f"{tmp_path}/missing is not a directory that this user may write to"):
            download.download(url, sha256(real), tmp_path / "missing" / "litefs", None)
        with pytest.raises(BinaryError, match=f"{tmp_path} cannot be installed: it is a directory"):
            download.download(url, sha256(real), tmp_path, None)
        assert server.asked == []

    def test_a_full_disk(self, server: Server, target: Path, real: bytes) -> None:
        """A limit to the size of files stands in for it."""
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); {DOWNLOAD}"
        command = [sys.executable, "-c", limited, server.serve("/litefs", real), sha256(real), str(target)]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        assert "cannot be written: File too large. Nothing was installed." in result.stderr
        assert is_untouched(target)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(server: Server, target: Path, real: bytes, number: signal.Signals) -> None:
    command = [sys.executable, "-c", DOWNLOAD, server.stall("/litefs", real), sha256(real), str(target)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as downloader:
        wait_until(lambda: len(os.listdir(target.parent)) == 2, "the download has begun")
        downloader.send_signal(number)
        assert downloader.wait(30)
    assert target.read_text() == OLD
    if number == signal.SIGINT:
        assert is_untouched(target)
    download.download(server.serve("/again", real), sha256(real), target, None)
    assert target.read_bytes() == real
    assert list(target.parent.iterdir()) == [target]
