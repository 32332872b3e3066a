"""Writes inside of requests that are safe by their method: begun on a replica, done on the primary."""

from __future__ import annotations

import pytest

from tests.cluster.handover import views
from tests.cluster.handover.site import Browser, Site
from tests.machine import wait_until

pytestmark = pytest.mark.cluster

ALL_HOW = [f"/write/{how}/" for how in views.HOW] + [f"/awrite/{how}/" for how in views.ASYNC_HOW] + ["/template/"]


def names(site: Site) -> list[str]:
    found: list[str] = site.primary.fetch("GET", "/authors/").json["names"]
    return found


@pytest.mark.parametrize("path", ALL_HOW)
def test_whatever_the_view_makes_of_it(site: Site, path: str) -> None:
    before = len(site.replica.logged())
    name = f"{site.replica.server}{path}"[:50]
    reply = site.replica.fetch("GET", f"{path}?name={name}")
    assert reply.status == 200, reply
    if path != "/template/":
        assert reply.json["node"] == site.primary.name
    assert names(site).count(name) == 1
    assert [line for line in site.replica.logged()[before:] if "wrote in a GET request" not in line] == []
    assert "signal: " not in site.replica.output()


def test_paths_that_write(site: Site) -> None:
    for path in ("/told/", "/told/abc/"):
        assert site.replica.fetch("GET", f"{path}?name=told").json["node"] == site.primary.name
    assert site.replica.fetch("GET", "/told/b/?name=y").json["node"] == site.replica.name
    assert "ran told" not in site.replica.output()


@pytest.mark.parametrize(("how", "hooks"), [("on_commit", 2), ("hook_first", 1)])
def test_the_hooks_of_a_request_run_once(site: Site, how: str, hooks: int) -> None:
    """A transaction that only reads 'commits' on the replica before the first write is refused."""
    name = f"once-{how}-{site.replica.server}"
    reply = site.replica.fetch("GET", f"/write/{how}/?name={name}")
    assert reply.status == 200
    wait_until(lambda: site.primary.output().count(f"hook {name}") == hooks, "its hooks have run on the primary")
    assert f"hook {name}" not in site.replica.output()


def test_a_new_session_and_an_old_one(site: Site) -> None:
    browser = Browser()
    for count, node in enumerate([site.replica, *site.nodes, *site.nodes], 1):
        reply = browser.get(node, "/session/")
        assert (reply.status, reply.json) == (200, {"node": site.primary.name, "count": count})


def test_messages(site: Site) -> None:
    browser = Browser()
    first, second = site.replicas
    assert browser.get(first, "/message/?text=hello").status == 200
    # Reading them marks them as read, which is a write.
    assert browser.get(second, "/message/").json == {"node": site.primary.name, "messages": ["hello"]}
    assert browser.get(first, "/message/").json["messages"] == []


def test_a_thread_without_the_request_gets_the_error(site: Site) -> None:
    reply = site.replica.fetch("GET", "/thread/?name=x")
    assert reply.json == {"node": site.replica.name, "found": ["NotPrimaryError"]}


@pytest.mark.parametrize("path", ["handled", "ahandled", "handled-class", "ahandled-class"])
def test_a_project_that_handles_it(site: Site, path: str) -> None:
    reply = site.replica.fetch("GET", f"/{path}/?name=never")
    assert reply.json == {"node": site.replica.name, "primary": site.primary.name}
    reply = site.primary.fetch("GET", f"/{path}/?name={path}+{site.primary.server}")
    assert reply.json == {"node": site.primary.name, "primary": None}


@pytest.mark.parametrize("path", ["marked", "amarked", "marked-class"])
def test_a_view_that_is_marked_as_writing_does_not_run_here(site: Site, path: str) -> None:
    name = f"{path}.{site.replica.server}"
    reply = site.replica.fetch("GET", f"/{path}/?name={name}&write=1")
    assert (reply.status, reply.json["node"]) == (200, site.primary.name)
    assert f"ran {name}" not in site.replica.output()
    assert site.primary.output().count(f"ran {name}\n") == 1


@pytest.mark.parametrize("path", ["search", "asearch", "search-class"])
def test_a_post_that_only_reads_stays_here(site: Site, path: str) -> None:
    reply = site.replica.fetch("POST", f"/{path}/?name=x", b"")
    assert (reply.status, reply.json["node"]) == (200, site.replica.name)
    # And when it writes after all it is handed over.
    name = f"{path}.{site.replica.server}"
    reply = site.replica.fetch("POST", f"/{path}/?name={name}&write=1", b"")
    assert (reply.status, reply.json["node"]) == (200, site.primary.name)
    assert names(site).count(name) == 1


def test_the_database_cache_hands_nothing_over(site: Site) -> None:
    """What it writes on a replica is left undone: new entries, deletions, and those of expired entries."""
    key = f"/cached/?key=k-{site.replica.server}"
    assert site.replica.fetch("GET", f"{key}&delete=1").json == {
        "node": site.replica.name,
        "before": None,
        "after": None,
        "deleted": False,
    }
    assert site.primary.fetch("GET", f"{key}&timeout=2").json["after"] == "value"
    site.wait_equal()
    wait_until(lambda: site.replica.fetch("GET", key).json["before"] is None, "the entry has expired")
    assert site.replica.fetch("GET", key).json == {
        "node": site.replica.name,
        "before": None,
        "after": None,
        "deleted": None,
    }


def test_a_response_that_has_not_begun_is_dropped(site: Site) -> None:
    name = f"file {site.replica.server}"
    reply = site.replica.fetch("GET", f"/file/?name={name.replace(' ', '%20')}")
    assert b"A streaming response" in reply.body
    assert names(site).count(name) == 1


def test_a_response_that_has_begun_comes_too_late(site: Site) -> None:
    if site.replica.server == "gunicorn":
        assert site.replica.fetch("GET", "/late/?name=x").body == b"begun NotPrimaryError"


def test_a_late_view_is_named_once(site: Site) -> None:
    for _ in range(3):
        site.replica.fetch("GET", "/told/once/?name=late&write=1&write=1")
    said = [line for line in site.replica.logged() if "told" in line and "wrote in a GET request" in line]
    workers = 2 if site.replica.server == "gunicorn" else 1
    assert 1 <= len(said) <= workers
    assert all("INFO" in line and 'LITEFS["WRITES"]' in line for line in said)
