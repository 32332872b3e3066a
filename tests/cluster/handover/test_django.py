"""Django's own parts, and REST framework's, through replicas."""

from __future__ import annotations

import re

import pytest

from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.prepare import PASSWORD, USERNAME
from tests.cluster.handover.site import Browser, Reply, Site, SiteNode

pytestmark = pytest.mark.cluster


def logged_in(browser: Browser, node: SiteNode) -> Reply:
    assert browser.get(node, "/admin/login/").status == 200
    reply = browser.post(node, "/admin/login/", {"username": USERNAME, "password": PASSWORD, "next": "/admin/"})
    assert reply.status == 302, reply.text
    return reply


def test_the_admin(site: Site) -> None:
    """Logged in, added, changed and deleted on one replica after the other; each change is seen at once."""
    browser = Browser()
    one, other = site.replicas
    name = f"admin {site.primary.server}"
    logged_in(browser, one)
    assert "Site administration" in browser.get(other, "/admin/").text
    reply = browser.post(one, "/admin/cluster/tag/add/", {"name": name})
    assert reply.status == 302, reply.text
    page = browser.follow(other, reply)
    assert "was added successfully" in page.text
    assert name in page.text
    pk = re.findall(r"/admin/cluster/tag/(\d+)/change/", page.text)[0]
    reply = browser.post(other, f"/admin/cluster/tag/{pk}/change/", {"name": f"{name} changed"})
    page = browser.follow(one, reply)
    assert f"{name} changed" in page.text
    reply = browser.post(one, f"/admin/cluster/tag/{pk}/delete/", {"post": "yes"})
    page = browser.follow(other, reply)
    assert "was deleted successfully" in page.text
    reply = browser.post(other, "/admin/logout/")
    assert reply.status == 200
    assert browser.get(one, "/admin/").status == 302


def test_a_form_without_its_token_is_refused(site: Site) -> None:
    """By the primary, as it would by itself."""
    browser = Browser()
    browser.get(site.replica, "/admin/login/")
    del browser.cookies["csrftoken"]
    reply = browser.post(site.replica, "/admin/login/", {"username": USERNAME, "password": PASSWORD})
    assert reply.status == 403
    assert "CSRF" in reply.text


def test_a_token_in_the_form_and_the_origin(site: Site) -> None:
    """CSRF compares Origin with Host, which has to be the client's."""
    browser = Browser()
    page = browser.get(site.replica, "/admin/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token is not None
    form = {"username": USERNAME, "password": PASSWORD, "csrfmiddlewaretoken": token[1]}
    wrong = browser.post(site.replica, "/admin/login/", form, headers=[("Origin", "http://evil.example")])
    assert wrong.status == 403
    assert browser.post(site.replica, "/admin/login/", form, headers=[("Origin", site.replica.url)]).status == 302


@pytest.mark.parametrize(
    ("server", "engine"),
    [
        ("gunicorn", "cached_db"),
        ("uvicorn", "cached_db"),
        ("gunicorn", "file"),
        ("uvicorn", "signed_cookies"),
        ("gunicorn", "cache"),
    ],
)
def test_other_sessions(start_site: StartSite, server: str, engine: str, tmp_path: object) -> None:
    """Those outside of the database hand nothing over; on one machine the files are the same for all nodes."""
    path = f"{tmp_path}/sessions"
    settings = {
        "SESSION_ENGINE": f"django.contrib.sessions.backends.{engine}",
        "CACHES": {
            "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": f"{path}-cache"}
        },
        "SESSION_FILE_PATH": str(tmp_path),
    }
    site = start_site(server, settings)
    browser = Browser()
    for count, node in enumerate([site.replica, *site.nodes], 1):
        reply = browser.get(node, "/session/")
        answering = site.primary if engine == "cached_db" else node
        assert (reply.status, reply.json) == (200, {"node": answering.name, "count": count})


def test_sessions_that_are_always_saved(start_site: StartSite, server: str) -> None:
    site = start_site(server, {"SESSION_SAVE_EVERY_REQUEST": True})
    browser = Browser()
    assert browser.get(site.replica, "/session/").status == 200
    reply = browser.get(site.replica, "/authors/")
    assert (reply.status, reply.json["node"]) == (200, site.primary.name)


def test_rest_framework(site: Site) -> None:
    """Its parsers read the request's body by themselves."""
    name = f"rest {site.primary.server}"
    headers = [("Content-Type", "application/json")]
    reply = site.replica.fetch("POST", "/rest/", b'{"name": "%s"}' % name.encode(), headers)
    assert (reply.status, reply.json) == (201, {"name": name})
    assert reply.get("X-Node") == site.primary.name
    reply = site.replica.fetch("POST", "/rest/", b'{"name": ', headers)
    assert reply.status == 400
    reply = site.replica.fetch("GET", "/rest/")
    assert (reply.status, reply.get("X-Node")) == (200, site.replica.name)
    reply = site.replica.fetch("GET", f"/rest/?write={name.replace(' ', '+')}+again")
    assert (reply.status, reply.get("X-Node")) == (200, site.primary.name)
