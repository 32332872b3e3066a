from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litefs_django.handover.headers import (
    RequestRefused,
    checked_host,
    environ_headers,
    environ_target,
    is_ours,
    request_headers,
    response_headers,
    scope_headers,
    scope_target,
)

names = st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=12)
values = st.text(string.printable.replace("\r", "").replace("\n", "").replace("\v", "").replace("\f", ""), max_size=12)
headers = st.lists(st.tuples(names, values), max_size=8)


@pytest.mark.parametrize(
    "name",
    ["Litefs-Django-Hop", "LITEFS_DJANGO_HOP", "litefs_django-hop", "litefs-django_answer", "Litefs-Django-Anything"],
)
def test_ours_never_go_along(name: str) -> None:
    assert is_ours(name)
    assert request_headers([(name, "x")]) == response_headers([(name, "x")]) == []


ONE_CONNECTION = ["Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection"]
ONE_CONNECTION += ["TE", "Trailer", "Transfer-Encoding", "Upgrade"]


@pytest.mark.parametrize("name", ONE_CONNECTION)
def test_those_of_one_connection_do_not_go_along(name: str) -> None:
    for spelled in (name, name.lower(), name.upper()):
        assert request_headers([(spelled, "x")]) == response_headers([(spelled, "x")]) == []


@pytest.mark.parametrize("name", ["Expect", "Content-Length", "Host"])
def test_those_that_the_sender_makes_anew(name: str) -> None:
    assert request_headers([(name, "x")]) == []


def test_those_that_connection_names_do_not_go_along() -> None:
    found = request_headers([("Connection", "close, X-One"), ("X-One", "1"), ("connection", "x-two"), ("X-Two", "2")])
    assert found == []


@pytest.mark.parametrize("name", ["Cookie", "Authorization", "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded"])
def test_connection_cannot_take_away_what_security_rests_on(name: str) -> None:
    assert request_headers([("Connection", f"close, {name}"), (name, "x")]) == [(name, "x")]


def test_all_others_go_along_as_they_came() -> None:
    came = [("Range", "bytes=0-3"), ("If-None-Match", '"a"'), ("Accept-Encoding", "br"), ("X-Ümläut", "x")][:3]
    assert request_headers(came) == came
    came = [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2"), ("Content-Encoding", "gzip"), ("Content-Length", "7")]
    assert response_headers([*came, ("Date", "now"), ("Server", "x")]) == came


@given(headers)
def test_a_response_loses_nothing_else(came: list[tuple[str, str]]) -> None:
    kept = response_headers(came)
    assert [pair for pair in came if pair in kept] == kept or all(pair in came for pair in kept)
    assert all(not is_ours(name) for name, _ in kept)


@given(headers)
def test_what_goes_along_can_be_written(came: list[tuple[str, str]]) -> None:
    for name, value in request_headers(came):
        assert not set(f"{name}{value}") & {"\r", "\n", "\0"}


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\n b", "a\0", "a\r"])
def test_a_value_with_a_line_end_is_refused(value: str) -> None:
    with pytest.raises(RequestRefused):
        request_headers([("X-One", value)])


@pytest.mark.parametrize("name", ["X One", "X:One", "X\r\n", ""])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(RequestRefused):
        request_headers([(name, "x")])


def test_the_headers_of_wsgi() -> None:
    environ = {"HTTP_X_ONE": "1", "CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "3", "SERVER_NAME": "x"}
    assert environ_headers(environ) == [("X-One", "1"), ("Content-Type", "text/plain")]


def test_the_headers_of_asgi() -> None:
    scope = {"headers": [(b"x-one", b"1"), (b"x-one", b"\xe4"), (b"x_one", b"3")]}
    assert scope_headers(scope) == [("x-one", "1"), ("x-one", "ä")]


@pytest.mark.parametrize("host", ["www.example.com", "127.0.0.1:8000", "[::1]:8000", ""])
def test_hosts(host: str) -> None:
    assert checked_host(host) == host


@pytest.mark.parametrize("host", ["a,b", "a b", "a\r\nX: y", "a/b", "a\0", "ä.example"])
def test_no_hosts(host: str) -> None:
    with pytest.raises(RequestRefused):
        checked_host(host)


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("/", "/"),
        ("/a%2Fb/%e4?x=%7e&y", "/a%2Fb/%e4?x=%7e&y"),
        ("/100%/%41", "/100%/%41"),
        ("/\xc3\xa4", "/%C3%A4"),
        ("//evil.example/x", "//evil.example/x"),
        ("http://evil.example/x?y", "/x?y"),
        ("/x#fragment", "/x"),
    ],
)
def test_targets_of_wsgi(raw: str, target: str) -> None:
    assert environ_target({"RAW_URI": raw}) == target
    assert environ_target({"REQUEST_URI": raw}) == target
    # The primary sees what it was sent.
    assert environ_target({"RAW_URI": target}) == target


@pytest.mark.parametrize("raw", ["*", "evil.example:443", "/a b", "/a\r\nX: y", "/a\0", "http://evil.example", "@x"])
def test_malformed_targets(raw: str) -> None:
    with pytest.raises(RequestRefused):
        environ_target({"RAW_URI": raw})


def test_a_server_that_does_not_tell_the_raw_path() -> None:
    environ = {"SCRIPT_NAME": "/site", "PATH_INFO": "/\xc3\xa4 b", "QUERY_STRING": "q=%e4"}
    assert environ_target(environ) == "/site/%C3%A4%20b?q=%e4"


@given(st.text(st.characters(max_codepoint=255), max_size=20))
def test_both_nodes_make_the_same_of_a_path(path: str) -> None:
    """Where the server tells only the decoded path, the second decodes what the first has encoded."""
    from urllib.parse import unquote_to_bytes

    sent = environ_target({"PATH_INFO": f"/{path}"})
    received = unquote_to_bytes(sent.partition("?")[0]).decode("latin-1")
    assert environ_target({"PATH_INFO": received}) == sent


@pytest.mark.parametrize(
    ("scope", "target"),
    [
        ({"path": "/ä", "raw_path": b"/%c3%a4", "query_string": b"a=b"}, "/%c3%a4?a=b"),
        ({"path": "/ä", "query_string": b""}, "/%C3%A4"),
        ({"path": "/ä", "raw_path": None}, "/%C3%A4"),
    ],
)
def test_targets_of_asgi(scope: dict[str, Any], target: str) -> None:
    assert scope_target(scope) == target
