"""One request as it came from the wire: what is signed, sent on, sent again, and restored on the primary.

Everything is kept before any other middleware or the view can change it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, UnreadablePostError

from litefs_django.handover import headers, signing
from litefs_django.handover.headers import Headers

_OURS = "HTTP_LITEFS_DJANGO_"
_HOP, _OCTETS = f"{_OURS}HOP", f"{_OURS}OCTETS"


class LengthRequired(Exception):
    """A chunked body whose end this WSGI server does not show."""


class Readable(Protocol):
    """A file, as far as it is needed."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: either `data`, or a stream with its `length`, None when it is chunked."""

    data: bytes | None = None
    stream: Readable | None = None
    length: int | None = 0


class Exchange(Protocol):
    """A request of either kind of server."""

    request: HttpRequest
    hop: str | None
    client: str
    scheme: str

    def signed(self) -> signing.Request:
        """What a hop's signature covers. Raises RequestRefused when the request cannot be passed on."""

    def headers(self) -> Headers:
        """As they came."""

    def read_small_body(self) -> None:
        """Reads a body that may be kept in memory. Raises UnreadablePostError when the client has gone."""

    def restore(self, hop: signing.Hop) -> None:
        """Lets the request look as it did on the node that sent it here."""

    def body(self) -> Body | None:
        """The whole body, to be sent once more each time; None when it is not to be had any more."""

    def again(self) -> HttpRequest | None:
        """A new request like the first, to run here; None when its body is not to be had any more."""


def exchange_of(request: HttpRequest) -> Exchange:
    """Keeps what the request is now, and takes our own headers out of it."""
    return _AsgiExchange(request) if isinstance(request, ASGIRequest) else _WsgiExchange(request)


def buffered_length() -> int:
    """The largest body that is read before the view, in bytes."""
    limit: int | None = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    most: int = settings.FILE_UPLOAD_MAX_MEMORY_SIZE
    return most if limit is None else min(most, limit)


def _take_ours(meta: dict[str, Any]) -> tuple[str | None, str]:
    """The headers HOP and OCTETS, as they came. Takes all of ours away."""
    hop, octets = meta.get(_HOP), meta.get(_OCTETS, "")
    # Looked for in all names at once: each request pays for it.
    if _OURS in "\n".join(meta):
        for key in [key for key in meta if key.startswith(_OURS)]:
            del meta[key]
    return hop, octets


class _WsgiExchange:
    def __init__(self, request: HttpRequest) -> None:
        assert isinstance(request, WSGIRequest)
        self.request: HttpRequest = request
        self.hop, self._octets = _take_ours(request.environ)
        self._environ = dict(request.environ)
        for key in ("PATH_INFO", "SCRIPT_NAME"):
            # Django has decoded them in place.
            self._environ[key] = self._environ[key].encode().decode("latin-1")
        self.client: str = self._environ.get("REMOTE_ADDR") or ""
        self.scheme: str = self._environ.get("wsgi.url_scheme") or "http"

    @property
    def _is_chunked(self) -> bool:
        return "HTTP_TRANSFER_ENCODING" in self._environ

    def _length(self) -> int:
        try:
            return max(int(self._environ.get("CONTENT_LENGTH") or 0), 0)
        except ValueError:
            return 0

    def read_small_body(self) -> None:
        length = self._length()
        if not self._is_chunked and 0 < length <= buffered_length() and len(self.request.body) < length:
            # The primary would be told another Content-Length, and take the half for the whole.
            raise UnreadablePostError

    def signed(self) -> signing.Request:
        environ = self._environ
        host = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
        return signing.Request(
            method=environ["REQUEST_METHOD"].upper(),
            target=headers.environ_target(environ),
            host=headers.checked_host(host),
        )

    def headers(self) -> Headers:
        return headers.environ_headers(self._environ)

    def restore(self, hop: signing.Hop) -> None:
        assert isinstance(self.request, WSGIRequest)
        for environ in (self.request.environ, self._environ):
            environ |= {"REMOTE_ADDR": hop.client, "wsgi.url_scheme": hop.scheme}
            for key in ("REMOTE_HOST", "REMOTE_PORT"):
                environ.pop(key, None)
            headers.unpack(self._octets, environ)

    def body(self) -> Body | None:
        request = self.request
        kept = vars(request).get("_body")
        if kept is not None:
            return Body(data=kept)
        if request._read_started:  # type: ignore[attr-defined]
            return None
        if self._is_chunked:
            if not self._environ.get("wsgi.input_terminated"):
                raise LengthRequired
            return Body(stream=_Chunked(request, self._environ["wsgi.input"]), length=None)
        length = self._length()
        return Body(stream=request, length=length) if length else Body(data=b"")

    def again(self) -> HttpRequest | None:
        kept = vars(self.request).get("_body")
        if kept is None and self.request._read_started:  # type: ignore[attr-defined]
            return None
        stream = self._environ["wsgi.input"] if kept is None else io.BytesIO(kept)
        return WSGIRequest({**self._environ, "wsgi.input": stream})


class _Chunked:
    """What Django does not read. As Django does of its own stream, the request knows when it has been begun."""

    def __init__(self, request: HttpRequest, stream: IO[bytes]) -> None:
        self._request = request
        self._stream = stream

    def read(self, size: int) -> bytes:
        self._request._read_started = True  # type: ignore[attr-defined]
        return self._stream.read(size)


class _AsgiExchange:
    def __init__(self, request: HttpRequest) -> None:
        assert isinstance(request, ASGIRequest)
        self.request: HttpRequest = request
        self.hop, self._octets = _take_ours(request.META)
        self._stream: IO[bytes] = request._stream
        self._take_scope(request.scope)

    def _take_scope(self, scope: Mapping[str, Any]) -> None:
        self._scope = scope
        self.client: str = (scope.get("client") or [""])[0]
        self.scheme: str = scope.get("scheme") or "http"

    def read_small_body(self) -> None:
        length = self._stream.seek(0, io.SEEK_END)
        self._stream.seek(0)
        if 0 < length <= buffered_length():
            _ = self.request.body

    def signed(self) -> signing.Request:
        meta = self.request.META
        host = meta.get("HTTP_HOST") or f"{meta['SERVER_NAME']}:{meta['SERVER_PORT']}"
        return signing.Request(
            method=self._scope["method"].upper(),
            target=headers.scope_target(self._scope),
            host=headers.checked_host(host),
        )

    def headers(self) -> Headers:
        return headers.scope_headers(self._scope)

    def restore(self, hop: signing.Hop) -> None:
        request = self.request
        assert isinstance(request, ASGIRequest)
        request.scope = {
            **request.scope,
            "scheme": hop.scheme,
            "client": (hop.client, 0) if hop.client else None,
            "headers": [
                *self._headers_of_others(),
                *(
                    (name.encode(), value.encode("latin-1"))
                    for name, value in headers.unpack(self._octets, request.META)
                ),
            ],
        }
        for key in ("REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT"):
            request.META.pop(key, None)
        if hop.client:
            request.META |= {"REMOTE_ADDR": hop.client, "REMOTE_HOST": hop.client}
        self._take_scope(request.scope)

    def body(self) -> Body | None:
        kept = vars(self.request).get("_body")
        if kept is not None:
            return Body(data=kept)
        if self._stream.closed:
            return None
        length = self._stream.seek(0, io.SEEK_END)
        self._stream.seek(0)
        return Body(stream=self._stream, length=length) if length else Body(data=b"")

    def again(self) -> HttpRequest | None:
        if vars(self.request).get("_body") is None and self._stream.closed:
            return None
        body = self.body()
        assert body is not None
        scope = {**self._scope, "headers": self._headers_of_others()}
        return ASGIRequest(scope, io.BytesIO(body.data) if body.data is not None else self._stream)

    def _headers_of_others(self) -> list[tuple[bytes, bytes]]:
        return [pair for pair in self._scope["headers"] if not headers.is_ours(pair[0].decode("latin-1"))]
