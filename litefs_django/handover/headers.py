"""Which headers of a request and of a response go along to the next machine, and what its target is: pure.

Names and values are str in latin-1, as WSGI has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

Headers = list[tuple[str, str]]

OURS = "litefs-django-"
# Those headers of a hop whose values are no UTF-8: aiohttp can write no others.
OCTETS = "Litefs-Django-Octets"

# For one connection only (RFC 9110, 7.6.1), and those that their sender makes anew. Host is signed, and set by hand.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)
_OF_THE_REQUEST = _HOP_BY_HOP | {"content-length", "expect", "host"}
# This node's own server writes its own.
_OF_THE_RESPONSE = _HOP_BY_HOP | {"date", "server"}
# A client must not be able to take these away by naming them in Connection.
_KEPT = frozenset({"authorization", "cookie", "forwarded", "origin", "referer", "x-csrftoken", "x-real-ip"})

_TARGET = re.compile(r"/[\x21-\x7e]*")
_AUTHORITY = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")


class RequestRefused(Exception):
    """The request cannot be passed on as it is: 400."""


def is_ours(name: str) -> bool:
    """Whether this is one of our own headers. Servers and proxies take '_' for '-'."""
    return name.lower().replace("_", "-").startswith(OURS)


def environ_headers(environ: Mapping[str, Any]) -> Headers:
    """The request's headers from a WSGI environ (PEP 3333), one for each name."""
    found = [(key[5:].replace("_", "-").title(), value) for key, value in environ.items() if key.startswith("HTTP_")]
    if content_type := environ.get("CONTENT_TYPE"):
        found.append(("Content-Type", content_type))
    return found


def scope_headers(scope: Mapping[str, Any]) -> Headers:
    """The request's headers from an ASGI scope. Like Django's it leaves out those with '_' in their names."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"] if b"_" not in name]


def request_headers(headers: Headers) -> Headers:
    """Those that go to the primary. Raises RequestRefused when one cannot be written on the wire."""
    passed = _passed(headers, _OF_THE_REQUEST)
    for name, value in passed:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise RequestRefused(f"The header {name!r} is malformed.")
    return passed


def packed(headers: Headers) -> str:
    """The value of OCTETS."""
    return urlencode(headers, encoding="latin-1")


def unpack(value: str, meta: dict[str, Any]) -> Headers:
    """The headers that this value of OCTETS stands for, after adding them to request.META, as a server would."""
    found = parse_qsl(value, keep_blank_values=True, encoding="latin-1")
    for name, each in found:
        key = name.upper().replace("-", "_")
        key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
        meta[key] = ("; " if key == "HTTP_COOKIE" else ",").join([meta[key], each] if key in meta else [each])
    return found


def response_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """Those that go to the client: each as it came, several of one name too."""
    return _passed(list(headers), _OF_THE_RESPONSE)


def _passed(headers: Headers, dropped: frozenset[str]) -> Headers:
    named = {
        token.strip().lower() for name, value in headers if name.lower() == "connection" for token in value.split(",")
    }
    named = {name for name in named if name not in _KEPT and not name.startswith("x-forwarded-")}
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in dropped and name.lower() not in named and not is_ours(name)
    ]


def checked_host(host: str) -> str:
    """The value for Host. Raises RequestRefused for what is none: two of them, or a line's end."""
    if not _HOST.fullmatch(host) or "," in host:
        raise RequestRefused("The Host header is malformed.")
    return host


def environ_target(environ: Mapping[str, Any]) -> str:
    """Path and query as the client sent them, where the WSGI server tells (RAW_URI, REQUEST_URI)."""
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if not raw:
        path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")) or "/"
        query = environ.get("QUERY_STRING", "")
        # The characters that a path may hold (RFC 3986).
        raw = quote(path.encode("latin-1"), safe="/~!$&'()*+,;=:@") + (f"?{query}" if query else "")
    return _checked_target(raw)


def scope_target(scope: Mapping[str, Any]) -> str:
    """Path and query as the client sent them, from an ASGI scope."""
    raw = scope.get("raw_path")
    path = quote(scope["path"], safe="/~!$&'()*+,;=:@") if raw is None else raw.decode("latin-1")
    query = scope.get("query_string", b"").decode("latin-1")
    return _checked_target(f"{path}?{query}" if query else path)


def _checked_target(raw: str) -> str:
    target = _AUTHORITY.sub("", raw, count=1) if not raw.startswith("/") else raw
    target = re.sub(r"[^\x00-\x7f]+", lambda found: quote(found[0].encode("latin-1")), target.partition("#")[0])
    if not _TARGET.fullmatch(target):
        raise RequestRefused("The path is malformed.")
    return target
