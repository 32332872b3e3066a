"""Sends a request on and streams the answer back, for WSGI: over the standard library's http.client.

urllib3 would rewrite the request's target ('%e4' to '%E4', a lone '%' to '%25'), and the signature would not fit it.
"""

from __future__ import annotations

import io
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead, LineTooLong
from typing import Any
from urllib.parse import urlsplit

from django.http import UnreadablePostError

from litefs_django.handover.transport import (
    CHUNK,
    IDLE,
    LONGEST_LINE,
    MOST_HEADERS,
    Broken,
    ClientGone,
    Forwarded,
    NotSent,
    Outgoing,
)

# A stream may be silent for as long as it likes: the kernel finds out whether the primary is still there.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


class _Response(HTTPResponse):
    """http.client's, which gives up at the 101st header, and of what comes before the answer skips 100 alone."""

    def begin(self) -> None:
        stream = self.fp
        super().begin()
        self.fp = stream

    def _read_status(self) -> Any:
        while True:
            status: Any = super()._read_status()  # type: ignore[misc]
            head = _read_head(self.fp)
            if status[1] == 101 or status[1] >= 200:
                self.fp = _Head(head)  # type: ignore[assignment]
                return status


class _Head(io.BytesIO):
    """What http.client, which counts lines, reads as a few long ones."""

    def readline(self, size: int | None = -1, /) -> bytes:
        # It refuses one of that size.
        return self.read((size or 0) - 1)


def _read_head(stream: io.BufferedIOBase) -> bytes:
    lines: list[bytes] = []
    while len(lines) <= MOST_HEADERS:
        line = stream.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise LineTooLong("header line")
        if not line:
            raise HTTPException("half a head")
        lines.append(line)
        if line in (b"\r\n", b"\n"):
            return b"".join(lines)
    raise HTTPException(f"more than {MOST_HEADERS} headers")


class _Pool:
    """Open connections that wait for the next request, by base URL. Thread-safe."""

    def __init__(self) -> None:
        self._idle: dict[str, list[tuple[float, HTTPConnection]]] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def take(self, url: str) -> HTTPConnection:
        """A connection, which may be a new one that is not open yet."""
        with self._lock:
            waiting, self._idle[url] = self._idle.get(url, []), []
            oldest = time.monotonic() - IDLE
            fresh = [(since, each) for since, each in waiting if since >= oldest and not _has_ended(each)]
            found = fresh.pop()[1] if fresh else None
            self._idle[url] = fresh
            kept = {id(each) for _, each in fresh} | {id(found)}
        for _, connection in waiting:
            if id(connection) not in kept:
                connection.close()
        return found or self._new(url)

    def give(self, url: str, connection: HTTPConnection) -> None:
        with self._lock:
            self._idle.setdefault(url, []).append((time.monotonic(), connection))

    def _new(self, url: str) -> HTTPConnection:
        parts = urlsplit(url)
        assert parts.hostname is not None
        if parts.scheme == "http":
            connection = HTTPConnection(parts.hostname, parts.port)
        else:
            self._tls = self._tls or ssl.create_default_context()
            connection = HTTPSConnection(parts.hostname, parts.port, context=self._tls)
        connection.response_class = _Response
        return connection


def _has_ended(connection: HTTPConnection) -> bool:
    """Whether the other side has closed it, or has said something out of turn."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


_pool = _Pool()


def _after_fork() -> None:
    # A child must not write into its parent's connections. They stay open in the parent.
    global _pool
    _pool = _Pool()


os.register_at_fork(after_in_child=_after_fork)


def send(outgoing: Outgoing) -> Forwarded:
    """Raises NotSent, Broken or ClientGone; there is no connection left then."""
    connection = _pool.take(outgoing.url)
    try:
        if connection.sock is None:
            _connect(connection, outgoing.connect_timeout)
        connection.sock.settimeout(outgoing.timeout)
        sock = connection.sock
        response = _exchange(connection, outgoing)
        sock.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return Forwarded(
        _Body(outgoing.url, connection, sock, response), response.status, response.reason, response.getheaders()
    )


def _connect(connection: HTTPConnection, timeout: float) -> None:
    connection.timeout = timeout
    try:
        connection.connect()
    except OSError as error:
        raise NotSent(str(error)) from error
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _exchange(connection: HTTPConnection, outgoing: Outgoing) -> HTTPResponse:
    try:
        try:
            _send(connection, outgoing)
        except (BrokenPipeError, ConnectionResetError):
            # The primary may have answered before it had everything.
            with suppress(OSError, HTTPException):
                return connection.getresponse()
            raise
        return connection.getresponse()
    except (OSError, HTTPException) as error:
        raise Broken(str(error) or type(error).__name__) from error


def _send(connection: HTTPConnection, outgoing: Outgoing) -> None:
    connection.putrequest(outgoing.method, outgoing.target, skip_host=True, skip_accept_encoding=True)
    for name, value in outgoing.headers:
        connection.putheader(name, value.encode("latin-1"))
    body = outgoing.body
    if body.data is not None:
        connection.endheaders(body.data or None)
        return
    connection.endheaders()
    if body.length is None:
        for chunk in _read(body.stream):
            connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        connection.send(b"0\r\n\r\n")
        return
    left = body.length
    for chunk in _read(body.stream):
        connection.send(chunk)
        left -= len(chunk)
    if left:
        raise ClientGone


def _read(stream: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = stream.read(CHUNK)
        except (UnreadablePostError, OSError, EOFError) as error:
            raise ClientGone from error
        if not chunk:
            return
        yield chunk


class _Body(Iterator[bytes]):
    """The answer's body as it arrives. At its end the connection goes back to the pool; closed earlier, it ends."""

    def __init__(self, url: str, connection: HTTPConnection, sock: socket.socket, response: HTTPResponse) -> None:
        self._url = url
        self._connection = connection
        self._sock = sock
        self._response: HTTPResponse | None = response

    def __next__(self) -> bytes:
        response = self._response
        if response is None:
            raise StopIteration
        try:
            chunk = response.read1(CHUNK)
            if chunk:
                return chunk
            if response.length:
                raise IncompleteRead(b"", response.length)
        except BaseException:
            self.close()
            raise
        self._response = None
        can_be_used_again = not response.will_close
        response.close()
        if can_be_used_again:
            _pool.give(self._url, self._connection)
        else:
            self._connection.close()
        raise StopIteration

    def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            self._connection.close()
            response.close()
