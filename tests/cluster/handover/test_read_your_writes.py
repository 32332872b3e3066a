"""A browser reads what it has written, on whichever node it comes to next."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
from django.core import signing

from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.site import Browser, Reply, Site, SiteNode
from tests.cluster.handover.test_errors import Meanwhile
from tests.machine import wait_until

pytestmark = pytest.mark.cluster

# Of `tests.cluster.project_settings`.
SECRET_KEY = "only for tests"

# Holds a read transaction open, which keeps LiteFS from applying anything on that node.
STALLED = """
import sys, django
django.setup()
from django.db import connection, transaction
from tests.cluster.models import Author
with transaction.atomic():
    list(Author.objects.all())
    print("stalled", flush=True)
    sys.stdin.read()
"""


class Stalled:
    """A replica that receives nothing for the time of a block."""

    def __init__(self, node: SiteNode) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", STALLED], env=node.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"stalled\n"

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._process.communicate()


def cookie_for(txid: int, alias: str = "default") -> tuple[str, str]:
    value = signing.dumps({alias: txid}, key=SECRET_KEY, salt="litefs_django.handover.cookie")
    return "Cookie", f"litefs_position={value}"


def timed(node: SiteNode, path: str, *headers: tuple[str, str]) -> tuple[Reply, float]:
    began = time.monotonic()
    return node.fetch("GET", path, None, headers), time.monotonic() - began


def test_200_times_without_a_miss(site: Site) -> None:
    browser = Browser()
    for number in range(200):
        name = f"{site.primary.server}-{number}"
        reply = browser.post(site.nodes[number % 3], "/post/", {"name": name})
        assert reply.status == 200
        node = site.nodes[(number + 1) % 3]
        reply = browser.get(node, f"/has/?name={name}")
        assert reply.json == {"node": node.name, "has": True}, number


def test_in_two_databases(start_site: StartSite, server: str) -> None:
    site = start_site(server, {"SECOND_DATABASE": True})
    browser = Browser()
    for number in range(20):
        for alias in ("default", "second"):
            assert browser.post(site.nodes[number % 3], f"/post/?using={alias}", {"name": f"{number}"}).status == 200
        node = site.nodes[(number + 1) % 3]
        for alias in ("default", "second"):
            reply = browser.get(node, f"/has/?using={alias}&name={number}")
            assert reply.json == {"node": node.name, "has": True}


def test_after_a_write_in_a_safe_request(site: Site) -> None:
    browser = Browser()
    first, second = site.replicas
    assert browser.get(first, f"/write/plain/?name=safe.{first.server}").status == 200
    assert browser.get(second, f"/has/?name=safe.{first.server}").json["has"]


def test_the_cookie(site: Site) -> None:
    reply = site.replica.fetch("POST", "/post/", {"name": f"cookie.{site.replica.server}"})
    (line,) = reply.all("Set-Cookie")
    morsel = SimpleCookie(line)["litefs_position"]
    assert (morsel["httponly"], morsel["samesite"], morsel["path"], morsel["max-age"]) == (True, "Lax", "/", "300")
    assert morsel["secure"] == ""
    position = site.primary.litefs_node.position()
    assert position is not None
    found = signing.loads(morsel.value, key=SECRET_KEY, salt="litefs_django.handover.cookie")
    assert found == {"default": position.txid}
    # Reading sets none, nor does a request that fails before it writes.
    assert site.replica.fetch("GET", "/authors/").all("Set-Cookie") == []
    assert site.primary.fetch("POST", "/who/", b"").all("Set-Cookie") == []


def test_it_is_secure_where_the_request_is(start_site: StartSite, server: str) -> None:
    site = start_site(server, {"SECURE_PROXY_SSL_HEADER": ["HTTP_X_FORWARDED_PROTO", "https"]})
    for node in site.nodes:
        reply = node.fetch("POST", "/post/", {"name": node.name}, [("X-Forwarded-Proto", "https")])
        (line,) = reply.all("Set-Cookie")
        assert SimpleCookie(line)["litefs_position"]["secure"] is True


def test_a_replica_that_cannot_catch_up(start_site: StartSite, server: str) -> None:
    """The primary answers then; and while there is none, the replica does: late, but it does."""
    site = start_site(server, READ_YOUR_WRITES_TIMEOUT=0.3)
    primary, replica = site.primary, site.replica
    browser = Browser()
    with Stalled(replica):
        assert browser.post(replica, "/post/", {"name": "mine"}).status == 200
        began = time.monotonic()
        assert browser.get(replica, "/has/?name=mine").json == {"node": primary.name, "has": True}
        assert 0.3 <= time.monotonic() - began < 2
        # Another browser does not wait.
        assert Browser().get(replica, "/has/?name=mine").json == {"node": replica.name, "has": False}
        primary.stop()
        cookie = "Cookie", f"litefs_position={browser.cookies['litefs_position']}"
        reply, took = timed(replica, "/has/?name=mine", cookie)
        assert reply.json == {"node": replica.name, "has": False}
        assert 0.3 <= took < 2


def test_a_position_that_never_comes(site: Site) -> None:
    """Of another cluster, or of a database that was replaced: the primary does not wait, and replaces the cookie."""
    ahead = cookie_for(10**9)
    reply, took = timed(site.primary, "/authors/", ahead)
    assert (reply.json["node"], took < 0.5) == (site.primary.name, True)
    (line,) = reply.all("Set-Cookie")
    position = site.primary.litefs_node.position()
    assert position is not None
    value = SimpleCookie(line)["litefs_position"].value
    assert signing.loads(value, key=SECRET_KEY, salt="litefs_django.handover.cookie") == {"default": position.txid}

    reply, took = timed(site.replica, "/authors/", ahead)
    assert (reply.json["node"], 1 <= took < 3) == (site.primary.name, True)
    (line,) = reply.all("Set-Cookie")
    reply, took = timed(site.replica, "/authors/", ("Cookie", line.partition(";")[0]))
    assert (reply.json["node"], took < 0.9) == (site.replica.name, True)


def test_what_the_primary_was_sent_for_reading_is_not_sent_again(
    start_site: StartSite, server: str, tmp_path: Path
) -> None:
    """It has not answered in time, and goes on; on the replica, which then answers, the view turns out to write."""
    site = start_site(server, READ_YOUR_WRITES_TIMEOUT=0.1, HANDOVER_TIMEOUT=1)
    primary, replica, go_on = site.primary, site.replica, tmp_path / "go_on"
    waiting = Meanwhile(
        partial(replica.fetch, "GET", f"/begun/plain/?name=once&until={go_on}", None, [cookie_for(10**9)])
    )
    wait_until(lambda: "ran once" in replica.output(), "the replica has it", context=site.logs)
    go_on.touch()
    reply = waiting.result()
    assert (reply.status, reply.get("Retry-After")) == (504, None)
    assert primary.output().count("ran once\n") == 1
    wait_until(lambda: primary.fetch("GET", "/authors/").json["names"] == ["once"], "the primary has written")


def test_an_unknown_database_is_nothing_to_wait_for(site: Site) -> None:
    reply, took = timed(site.replica, "/authors/", cookie_for(10**9, "gone"))
    assert (reply.json["node"], took < 0.9) == (site.replica.name, True)


def test_an_expired_cookie(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda now=time.time: now() - 301)
        expired = cookie_for(10**9)
    reply, took = timed(site.replica, "/authors/", expired)
    assert (reply.json["node"], took < 0.9) == (site.replica.name, True)
