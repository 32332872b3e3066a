"""A request as it came from the wire, and once more."""

from __future__ import annotations

import io

from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest

from litefs_django.handover.exchange import exchange_of
from litefs_django.handover.headers import OCTETS, packed
from litefs_django.handover.signing import Hop

REQUESTS: list[HttpRequest] = [
    ASGIRequest(
        {
            "type": "http",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": [(b"litefs-django-else", b"x"), (b"x-one", b"1")],
        },
        io.BytesIO(),
    ),
    WSGIRequest(
        {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/",
            "SCRIPT_NAME": "",
            "wsgi.input": io.BytesIO(),
            "HTTP_LITEFS_DJANGO_ELSE": "x",
            "HTTP_X_ONE": "1",
        }
    ),
]


def test_a_request_that_begins_again_has_no_header_of_ours() -> None:
    for request in REQUESTS:
        again = exchange_of(request).again()
        assert again is not None
        assert "LITEFS" not in "".join(request.META)
        assert "LITEFS" not in "".join(again.META)
        assert again.META["HTTP_X_ONE"] == "1"


def test_headers_that_are_no_utf_8_on_their_way() -> None:
    """From a replica under ASGI to a primary under either."""
    hop = Hop(source="a", target="b", scheme="http", client="x")
    came = [("x-odd", "\xe4&="), ("cookie", "b=\xff"), ("content-type", "text/x-\xe4"), ("x-odd", "\xe5")]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b""}
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SCRIPT_NAME": "", "wsgi.input": io.BytesIO()}
    octets = packed(came)
    for request in (
        ASGIRequest({**scope, "headers": [(OCTETS.lower().encode(), octets.encode())]}, io.BytesIO()),
        WSGIRequest({**environ, "HTTP_LITEFS_DJANGO_OCTETS": octets}),
    ):
        exchange = exchange_of(request)
        assert "\xe4" not in str(exchange.headers())
        exchange.restore(hop)
        again = exchange.again()
        assert again is not None
        for each in (request, again):
            assert each.META["HTTP_X_ODD"] == "\xe4&=,\xe5"
            assert each.META["CONTENT_TYPE"] == "text/x-\xe4"
            assert each.META["HTTP_COOKIE"] == "b=\xff"
            assert "LITEFS" not in "".join(each.META)
