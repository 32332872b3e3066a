"""HANDOVER = "redirect" and "replay"."""

from __future__ import annotations

import pytest

from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.site import Reply, Site

pytestmark = pytest.mark.cluster

PATHS = [("POST", "/post/"), ("GET", "/write/plain/?name=a%2Fb&x=%e4"), ("GET", "/marked/?name=a%2Fb&x=%e4")]


def test_redirect(start_site: StartSite, server: str) -> None:
    site = start_site(server, HANDOVER="redirect")
    for method, path in PATHS:
        reply = site.replica.fetch(method, path, b"name=never" if method == "POST" else None)
        assert (reply.status, reply.body) == (307, b"")
        assert reply.get("Location") == f"{site.primary.url}{path}"
    assert site.primary.fetch("GET", "/authors/").json["names"] == []


def test_replay(start_site: StartSite, server: str) -> None:
    site = start_site(server, HANDOVER="replay")
    for method, path in PATHS:
        reply = site.replica.fetch(method, path, b"name=never" if method == "POST" else None)
        assert reply.get("fly-replay") == f"instance={site.primary.name}"
        # Where no proxy replays it the client does not take it for done.
        assert (reply.status, reply.body) == (409, b"")


@pytest.mark.parametrize("mode", ["redirect", "replay"])
def test_they_need_no_secret(start_site: StartSite, server: str, mode: str) -> None:
    site = start_site(server, HANDOVER=mode, HANDOVER_TIMEOUT=0.2)
    node = site.replica
    node.stop()
    del node.litefs["SECRET"]
    site.start()
    assert answered(site).status in (307, 409)
    site.primary.litefs_node.kill()
    assert node.fetch("POST", "/post/", {"name": "never"}).status == 503
    assert node.fetch("POST", "/post/", b"", [("Litefs-Django-Hop", "x")]).status == 403


def answered(site: Site) -> Reply:
    return site.replica.fetch("POST", "/post/", {"name": "never"})
