"""Unsafe requests on a replica: the primary answers, and client and view see no difference."""

from __future__ import annotations

import hashlib

import pytest

from tests.cluster.handover.site import Site

pytestmark = pytest.mark.cluster


def test_a_post_is_answered_by_the_primary(site: Site) -> None:
    for number, node in enumerate(site.nodes):
        reply = node.fetch("POST", "/post/", {"name": f"posted {number}"})
        assert (reply.status, reply.json["node"]) == (200, site.primary.name), reply
    names = site.primary.fetch("GET", "/authors/").json["names"]
    assert {f"posted {number}" for number in range(3)} <= set(names)


def test_a_get_stays_where_it_is(site: Site) -> None:
    for node in site.nodes:
        assert node.fetch("GET", "/authors/").json["node"] == node.name


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PURGE"])
def test_the_request_is_what_it_was(site: Site, method: str) -> None:
    headers = [
        ("Host", "www.example.com"),
        ("X-One", "1"),
        ("Accept-Encoding", "br"),
        ("User-Agent", "test"),
        ("Cookie", "a=b; c=d\xe4"),
        ("Content-Type", "application/x-odd"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("If-None-Match", '"x"'),
        ("X-Latin", "\xc3\xa4"),
        ("X-Octets", "\xe4 \xff &+%=\xc3"),
    ]
    path = "/who/a%2Fb/%e4/100%?q=%7e&e=&%41=%zz"
    here, there = (node.fetch(method, path, b"the body", headers).json for node in (site.primary, site.replica))
    assert here == there
    assert there["host"] == "www.example.com"
    assert there["headers"]["X-One"] == "1"
    assert there["body"] == hashlib.sha256(b"the body").hexdigest()
    assert there["ours"] == []


def test_the_client_is_the_client(site: Site) -> None:
    """Not the replica, which reaches the primary under the same address here: so the port's owner tells."""
    reply = site.replica.fetch("POST", "/who/", b"").json
    assert reply["client"] == "127.0.0.1"
    assert reply["url"] == f"{site.replica.url}/who/"


@pytest.mark.parametrize("status", [200, 201, 204, 304, 400, 401, 403, 404, 409, 418, 500, 503])
@pytest.mark.parametrize("method", ["POST"])
def test_the_response_comes_back_untouched(site: Site, method: str, status: int) -> None:
    path = f"/answer/?status={status}" + ("&empty=1" if status in (204, 304) else "")
    here, there = (node.fetch(method, path, b"x") for node in (site.primary, site.replica))
    assert (there.status, there.body) == (here.status, here.body) == (status, here.body)
    for name in ("X-Node", "Content-Encoding", "Content-Type", "Content-Length", "X-Frame-Options", "Date", "Server"):
        assert len(there.all(name)) == len(here.all(name)), name
    assert there.get("X-Node") == site.primary.name
    assert there.all("Set-Cookie") == here.all("Set-Cookie")
    assert len(there.all("Set-Cookie")) == 2


def test_any_number_of_headers_comes_back(site: Site) -> None:
    """More than Python's own client reads."""
    answer = site.replica.raw(b"POST /answer/?more=900 HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
    assert b" 200 OK\r\n" in answer
    assert answer.lower().count(b"\r\nx-more-") == 900
    assert answer.endswith(b"the body")


@pytest.mark.parametrize("length", [0, 1, 2621440, 2621441, 20_000_000])
def test_bodies_of_any_size(site: Site, length: int) -> None:
    """Those that are kept, those that are not (2.5 MiB is Django's limit), up and down."""
    body = b"x" * (length - 4) + length.to_bytes(4) if length > 4 else b"x" * length
    reply = site.replica.fetch("POST", "/swallow/", body)
    assert reply.status == 200, reply
    assert reply.json == {
        "node": site.primary.name,
        "length": length,
        "digest": hashlib.sha256(body).hexdigest(),
    }


@pytest.mark.parametrize("length", ["", "&length=1"])
def test_large_responses(site: Site, length: str) -> None:
    reply = site.replica.fetch("POST", f"/big/?megabytes=40{length}", b"")
    assert len(reply.body) == 40 << 20
    assert reply.body[:256] == bytes(range(256))
    assert reply.get("Content-Length") == (str(40 << 20) if length else None)


def test_a_form_with_a_file(site: Site) -> None:
    content = bytes(range(256)) * 20000
    boundary = "----x"
    name = b"uploaded by " + site.replica.server.encode()
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="name"\r\n\r\n'.encode() + name + b"\r\n",
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode() + content,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    headers = [("Content-Type", f"multipart/form-data; boundary={boundary}")]
    reply = site.replica.fetch("POST", "/upload/", b"".join(parts), headers)
    assert reply.status == 200, reply
    assert reply.json["digest"] == hashlib.sha256(content).hexdigest()


def test_an_error_of_the_primary_is_its_own(site: Site) -> None:
    """It has written, and then failed: the response comes back as it is, and nobody tries again."""
    before = site.replica.logged()
    reply = site.replica.fetch("POST", "/failing/", {"name": "failing"})
    assert (reply.status, reply.get("Retry-After")) == (500, None)
    assert "Server Error" in reply.text
    assert site.primary.output().count("RuntimeError: ") == 1
    assert site.replica.logged() == before
    assert site.primary.fetch("GET", "/authors/").json["names"].count("failing") == 1
