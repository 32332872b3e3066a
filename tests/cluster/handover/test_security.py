"""What others than the nodes may try, on real servers."""

from __future__ import annotations

import base64
import time

import pytest

from litefs_django.handover.signing import ANSWER, HOP, Hop, Request, Signer
from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.site import SECRET, Browser, Site, SiteNode
from tests.cluster.handover.test_late import names

pytestmark = pytest.mark.cluster

FORM = ("Content-Type", "application/x-www-form-urlencoded")


def hop(
    node: SiteNode,
    *,
    to: SiteNode | None = None,
    secret: str = SECRET,
    age: float = 0,
    target: str = "/post/",
    scheme: str = "http",
    client: str = "198.51.100.7",
) -> str:
    """What another node would sign to send this one a request."""
    signed = Hop(source="node3", target=(to or node).name, scheme=scheme, client=client)
    request = Request(method="POST", target=target, host=f"127.0.0.1:{node.port}")
    return Signer([secret]).sign(signed, request, time.time() - age)


def send(node: SiteNode, value: str, *, target: str = "/post/", name: str = "never", method: str = "POST") -> int:
    return node.fetch(method, target, f"name={name}".encode(), [FORM, (HOP, value)]).status


def test_what_a_node_signs_is_taken(site: Site) -> None:
    """So that the tests that follow fail for the reason that they name."""
    assert send(site.primary, hop(site.primary), name=f"taken by {site.primary.server}") == 200
    assert names(site).count(f"taken by {site.primary.server}") == 1


def test_forged_and_altered_signatures(site: Site) -> None:
    for node in (site.primary, site.replica):
        good = hop(node)
        for value in (
            hop(node, secret="another secret that is long enough for one"),
            hop(node, age=-12),
            good[:-1],
            good[:50],
            f"x{good}",
            f"{good},{good}",
            good.partition(".")[0] + ".",
            "." + good.partition(".")[2],
            "x" * 5000,
            "null",
            "",
        ):
            assert send(node, value) == 403, value
        # For another path, query or method.
        assert send(node, good, target="/post/?x=1") == 403
        assert send(node, hop(node, target="/who/")) == 403
        assert send(node, good, method="PUT") == 403
        other_host = [FORM, (HOP, good), ("Host", "www.example.com")]
        assert node.fetch("POST", "/post/", b"name=never", other_host).status == 403
    assert "never" not in names(site)


def test_one_that_comes_too_late_is_done_nothing_of(site: Site) -> None:
    """The node that sent it is told so, and may send it elsewhere: this one may have stood still meanwhile."""
    for node in (site.primary, site.replica):
        value = hop(node, age=12)
        reply = node.fetch("POST", "/post/", b"name=never", [FORM, (HOP, value)])
        assert reply.status == 403
        assert Signer([SECRET]).is_answer(reply.get(ANSWER) or "", value)
        assert "A request from another node is not served: it is too old" in node.output()
    assert "never" not in names(site)


def test_one_for_another_node(site: Site) -> None:
    """Valid, but not for this node: URL in NODES leads to the wrong one, or somebody plays it back."""
    for node in site.nodes:
        for other in site.nodes:
            if other is not node:
                assert send(node, hop(node, to=other)) == 508
    assert "never" not in names(site)
    assert any("look at LITEFS" in line for line in site.primary.logged())


def test_a_replica_sends_no_hop_on(site: Site) -> None:
    """It answers that it has done nothing: no second hop, no loop."""
    reply = site.replica.fetch("POST", "/post/", b"name=never", [FORM, (HOP, value := hop(site.replica))])
    assert reply.status == 503
    assert Signer([SECRET]).is_answer(reply.get(ANSWER) or "", value)
    assert "never" not in names(site)


def test_a_loop_of_urls(start_site: StartSite, server: str) -> None:
    site = start_site(server)
    first, second = site.replicas
    # The first one takes the second one for the primary.
    first.litefs["NODES"]["node1"]["URL"] = second.url
    first.litefs["NODES"]["node2"]["URL"] = first.url
    first.litefs["NODES"]["node3"]["URL"] = f"http://127.0.0.1:{site.primary.port}"
    first.stop()
    site.start()
    assert first.fetch("POST", "/post/", {"name": "never"}).status == 508
    assert names(site) == []


@pytest.mark.parametrize("name", ["Litefs-Django-Hop", "Litefs-Django-Answer", "Litefs-Django-Else"])
def test_our_own_headers_from_outside(site: Site, name: str) -> None:
    """In any spelling: refused when they claim to be a hop, else out of the view's sight, and never passed on."""
    for spelled in (name, name.upper(), name.replace("-", "_"), name.replace("-D", "_d"), f"{name} "):
        for node in (site.primary, site.replica):
            head = f"Host: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n{spelled}: x\r\n\r\n"
            received = node.raw(b"POST /who/ HTTP/1.1\r\n" + head.encode())
            status = int(received.split(b" ", 2)[1])
            assert status in (200, 400, 403), received
            if spelled == "Litefs-Django-Hop":
                assert status == 403
            if status == 200:
                assert b'"ours": []' in received
                assert b"itefs" not in received.partition(b"\r\n\r\n")[2].replace(b'"ours"', b"").lower()


def test_what_is_restored_can_only_come_from_a_node(site: Site) -> None:
    """The client's address and scheme are those of the signature, on the primary alone."""
    signed = hop(site.primary, target="/who/", scheme="https", client="2001:db8::7")
    there = site.primary.fetch("POST", "/who/", b"", [(HOP, signed)]).json
    assert (there["client"], there["secure"], there["url"][:8]) == ("2001:db8::7", True, "https://")
    assert there["ours"] == []


@pytest.mark.parametrize(
    "head",
    [
        # Content-Length and Transfer-Encoding at once, twice, or in odd spellings.
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5_0\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\nContent-Length: 5\r\n",
        # obs-fold, bare CR and LF, NUL.
        b"X-One: a\r\n b\r\nContent-Length: 5\r\n",
        b"X-One: a\nX-Two: b\r\nContent-Length: 5\r\n",
        b"X-One: a\rX-Two: b\r\nContent-Length: 5\r\n",
        b"X-One: a\0b\r\nContent-Length: 5\r\n",
        b"Host: evil.example\r\nContent-Length: 5\r\n",
    ],
)
def test_smuggling(site: Site, head: bytes) -> None:
    """What the body hides never becomes a request of its own, on any of the two servers that it passes."""
    hidden = b"0\r\n\r\nPOST /post/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    hidden += b"Content-Length: 13\r\n\r\nname=smuggled"
    request = b"POST /who/ HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + b"Connection: close\r\n\r\n"
    received = site.replica.raw(request + hidden, timeout=10)
    assert received.count(b"HTTP/1.1 ") <= 1, received
    assert b"smuggled" not in b" ".join(name.encode() for name in names(site))
    # And the connection to the primary is not left with half a request on it.
    for _ in range(3):
        assert site.replica.fetch("POST", "/who/", b"x").json["length"] == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1, evil.example", "127.0.0.1:80@evil.example", "evil.example/127.0.0.1"]
)
def test_hosts(site: Site, host: str) -> None:
    """As on the primary: what ALLOWED_HOSTS does not hold is 400. It is not where the request goes."""
    for node in (site.primary, site.replica):
        assert node.fetch("POST", "/who/", b"", [("Host", host)]).status == 400


def test_forwarded_headers_make_no_difference(site: Site) -> None:
    """They go along, and mean to the primary what they mean to the replica: nothing, unless the project says so."""
    headers = [
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Server", "evil.example"),
        ("X-Forwarded-For", "203.0.113.66"),
        ("Forwarded", "for=203.0.113.66;host=evil.example;proto=https"),
        ("X-Forwarded-Prefix", "/evil"),
        ("Connection", "close, X-Forwarded-For, Cookie"),
        ("Cookie", "a=b"),
    ]
    here, there = (node.fetch("POST", "/who/", b"", headers).json for node in (site.primary, site.replica))
    assert there["headers"]["X-Forwarded-For"] == "203.0.113.66"
    assert there["headers"]["Cookie"] == "a=b"
    assert there["url"] == f"{site.replica.url}/who/"
    assert (here["secure"], here["client"]) == (there["secure"], there["client"])


@pytest.mark.parametrize("target", ["http://evil.example/who/", "evil.example:80", "*", "who/"])
def test_other_targets(site: Site, target: str) -> None:
    """An absolute one is a path like any other; the rest is refused, or goes nowhere but to a node."""
    request = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    received = site.replica.raw(request.encode())
    assert int(received.split(b" ", 2)[1]) in (200, 400, 404), received
    assert site.replica.fetch("GET", "/ping/").status == 200


def test_tampered_cookies(site: Site) -> None:
    """One that was not signed here is as none: nobody can make a node wait, or see what is in it."""
    browser = Browser()
    assert browser.post(site.replica, "/post/", {"name": f"cookie {site.replica.server}"}).status == 200
    good = browser.cookies["litefs_position"]
    payload = base64.urlsafe_b64encode(b'{"default":999999999}').decode().rstrip("=")
    for value in ("", "x", good[:-1], payload + good[good.index(":") :], f"{payload}::", "%01", "9" * 4000):
        began = time.monotonic()
        reply = site.replica.fetch("GET", "/authors/", None, [("Cookie", f"litefs_position={value}")])
        assert (reply.status, reply.json["node"]) == (200, site.replica.name)
        assert time.monotonic() - began < 0.9


def test_nothing_secret_is_logged(site: Site) -> None:
    value = hop(site.primary, age=60)
    assert send(site.primary, value, target="/post/?token=private") == 403
    for node in site.nodes:
        assert SECRET not in node.output()
        assert value.partition(".")[2] not in node.output()
        assert "private" not in node.output()
