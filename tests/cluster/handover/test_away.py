"""Requests that find LiteFS away on the node that answers them: before they begin, in the middle, at their commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.site import Browser, Site
from tests.cluster.handover.test_errors import Meanwhile
from tests.cluster.test_backend_failures import Supervisor
from tests.machine import wait_until

pytestmark = pytest.mark.cluster


@contextmanager
def back_afterwards(site: Site) -> Iterator[None]:
    """Whatever LiteFS has ended meanwhile runs again, for the next test."""
    try:
        yield
    finally:
        site.cluster.start()
        site.wait_equal()


@pytest.mark.parametrize("how", ["plain", "atomic", "session", "hook"])
def test_it_ends_between_reading_and_writing(site: Site, tmp_path: Path, how: str) -> None:
    """The request waits until this node is back, and runs again; of a session's error Django would make a 400."""
    node, name, go_on = site.primary, f"{how}-{site.primary.server}", tmp_path / "go_on"
    browser = Browser()
    browser.get(node, "/session/")
    before = len(node.logged())
    with back_afterwards(site):
        waiting = Meanwhile(partial(browser.get, node, f"/begun/{how}/?name={name}&until={go_on}"))
        wait_until(lambda: f"ran {name}" in node.output(), "it has read")
        node.litefs_node.kill()
        go_on.touch()
        wait_until(lambda: len(node.logged()) > before, "it has met the end", context=node.output)
        assert waiting.is_waiting
    assert waiting.result().status == 200
    (said,) = node.logged()[before:]
    assert said.startswith(f"LOG WARNING litefs_django.handover.course GET /begun/{how}/ is not answered here: ")
    assert node.output().count(f"ran {name}\n") == 2
    assert node.fetch("GET", "/authors/").json["names"].count(name) == 1


def test_a_page_is_read_elsewhere(site: Site) -> None:
    replica = site.replica
    with back_afterwards(site):
        replica.litefs_node.kill()
        reply = replica.fetch("GET", "/authors/")
        assert (reply.status, reply.json["node"]) == (200, site.primary.name)
        assert replica.fetch("GET", "/told/%0aLOG%20forged/?name=x&write=1").status == 200
    assert not any(line.startswith("LOG forged") for line in replica.logged())
    reply = replica.fetch("GET", "/authors/")
    assert (reply.status, reply.json["node"]) == (200, replica.name)


def test_a_commit_of_which_nothing_is_known(site: Site, tmp_path: Path) -> None:
    """LiteFS is killed between the COMMIT of a session and its check, a moment that the view makes long.

    That is 500, where Django's sessions would make a 400 of it.
    """
    node, name, go_on = site.primary, f"unknown-{site.primary.server}", tmp_path / "go_on"
    browser = Browser()
    browser.get(node, "/session/")
    with back_afterwards(site):
        answer = Meanwhile(partial(browser.get, node, f"/begun/unknown/?name={name}&until={go_on}"))
        wait_until(lambda: f"ran {name}" in node.output(), "it has committed")
        node.litefs_node.kill()
        go_on.touch()
        reply = answer.result()
    assert (reply.status, reply.get("Retry-After")) == (500, None)
    assert node.output().count(f"ran {name}\n") == 1
    assert "CommitOutcomeUnknown: It is not known whether the commit to database 'default' happened" in node.output()
    ours = "LOG ERROR litefs_django.handover.course GET /begun/unknown/: It is not known whether the commit"
    assert any(line.startswith(ours) for line in node.logged())


def test_looking_for_a_primary_again_and_again_is_cheap(start_site: StartSite, server: str) -> None:
    """The supervisor is about to stop a LiteFS that still says that it is the primary: the view runs in vain."""
    site = start_site(server, HANDOVER_TIMEOUT=2)
    node = site.primary
    with Supervisor(node.litefs_node) as supervisor:
        supervisor.say_down()
        wait_until(lambda: node.fetch("GET", "/authors/").status == 503, "its connections know")
        reply = node.fetch("GET", "/told/?name=vain&write=1")
        assert (reply.status, reply.get("Retry-After")) == (503, "2")
        assert 2 <= node.output().count("ran vain\n") <= 20
        assert sum("/told/ is not answered here" in line for line in node.logged()) == 1
