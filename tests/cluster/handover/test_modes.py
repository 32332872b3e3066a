"""HANDOVER = "redirect" and "replay"."""

from __future__ import annotations

from http.cookies import SimpleCookie

import pytest

from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.site import Site
from tests.machine import wait_until

pytestmark = pytest.mark.cluster

PATHS = [("POST", "/post/"), ("GET", "/write/plain/?name=a%2Fb&x=%e4"), ("GET", "/marked/?name=a%2Fb&x=%e4")]


def test_redirect(start_site: StartSite, server: str) -> None:
    site = start_site(server, {"SESSION_COOKIE_DOMAIN": "example.com"}, HANDOVER="redirect", HANDOVER_TIMEOUT=0.2)
    for method, path in PATHS:
        reply = site.replica.fetch(method, path, b"name=never" if method == "POST" else None)
        assert (reply.status, reply.body) == (307, b"")
        assert reply.get("Location") == f"{site.primary.url}{path}"
    # Wherever it leads, it leads to a node.
    for path in ("//evil.example/x", "/\\evil.example", "/@evil.example", "/%0d%0aX-Evil:1", "/http://evil.example"):
        reply = site.replica.fetch("POST", path, b"")
        assert reply.status == 307
        assert (reply.get("Location") or "").startswith(f"{site.primary.url}/")
        assert reply.get("X-Evil") is None
    assert site.primary.fetch("GET", "/authors/").json["names"] == []
    # The cookie that the primary sets is for the other nodes too.
    (line,) = site.primary.fetch("POST", "/post/", {"name": "written"}).all("Set-Cookie")
    assert SimpleCookie(line)["litefs_position"]["domain"] == "example.com"
    assert_needs_no_secret(site, 307)


def test_replay(start_site: StartSite, server: str) -> None:
    site = start_site(server, HANDOVER="replay", HANDOVER_TIMEOUT=0.2)
    for method, path in PATHS:
        reply = site.replica.fetch(method, path, b"name=never" if method == "POST" else None)
        assert reply.get("fly-replay") == f"instance={site.primary.name}"
        # Where no proxy replays it the client does not take it for done.
        assert (reply.status, reply.body) == (409, b"")
    assert_needs_no_secret(site, 409)


def assert_needs_no_secret(site: Site, status: int) -> None:
    """A replica goes on answering so without one. The primary's LiteFS is killed."""
    node = site.replica
    node.stop()
    del node.litefs["SECRET"]
    site.start()
    assert node.fetch("POST", "/post/", {"name": "never"}).status == status
    site.primary.litefs_node.kill()
    wait_until(lambda: node.fetch("POST", "/post/", {"name": "never"}).status == 503, "it notices, and says so")
    assert node.fetch("POST", "/post/", b"", [("Litefs-Django-Hop", "x")]).status == 403
