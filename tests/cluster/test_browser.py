"""The example's admin in a real Chromium, through the replicas of a cluster: `tox run -e browser`.

Each page is looked at once, as it comes after a click or under another node's address. All nodes are 127.0.0.1, and
cookies know no ports, so the browser takes them for one site.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nodes import Node, cluster
from scenario import PASSWORD, PICTURE, find_primary

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = [pytest.mark.cluster, pytest.mark.browser]

# The first is for root, whom Chromium does not run for otherwise; the last ones keep it off the network.
OPTIONS = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 30


@pytest.fixture(params=[False, True], ids=["gunicorn", "uvicorn"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path, litefs_binary: Path) -> Iterator[list[Node]]:
    """The three nodes of the example, the primary first, with a superuser."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "litefs").symlink_to(litefs_binary)
    found = cluster(tmp_path, is_async=request.param, show=False)
    with ExitStack() as stack:
        # pytest shows it with a failure.
        stack.callback(lambda: sys.stdout.writelines(line for node in found for line in node.output))
        for node in found:
            node.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
            stack.callback(node.stop)
            node.start()
        for node in found:
            node.wait_until_it_answers()
        superuser = {"USERNAME": "ada", "EMAIL": "ada@example.com", "PASSWORD": PASSWORD}
        environment = {f"DJANGO_SUPERUSER_{key}": value for key, value in superuser.items()}
        primary = find_primary(found)
        primary.manage("createsuperuser", "--noinput", **environment)
        yield [primary, *(node for node in found if node is not primary)]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.fail("Chromium or its driver is not installed: apt-get install chromium chromium-driver", pytrace=False)
    from selenium import webdriver

    chromium, driver = programs
    assert chromium is not None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    home = tmp_path / "home"
    home.mkdir()
    for option in (*OPTIONS, f"--user-data-dir={home / 'profile'}"):
        options.add_argument(option)
    service = webdriver.ChromeService(driver, env={**os.environ, "HOME": str(home)})
    with webdriver.Chrome(options, service) as chrome:
        chrome.set_page_load_timeout(SECONDS)
        yield Browser(chrome)


class Browser:
    """What a person does with it."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def open(self, node: Node, path: str) -> None:
        self.chrome.get(node.url + path)

    def find(self, selector: str) -> WebElement:
        """The first element of this CSS selector that is on the page now."""
        return self.chrome.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.chrome.find_elements("css selector", selector)]

    def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            field = self.find(f"[name={name}]")
            if field.get_attribute("type") != "file":
                field.clear()
            field.send_keys(value)

    def submit(self, selector: str) -> None:
        """Clicks, and waits for the page that comes."""
        from selenium.webdriver.support.expected_conditions import staleness_of
        from selenium.webdriver.support.wait import WebDriverWait

        page = self.find("html")
        self.find(selector).click()
        WebDriverWait(self.chrome, SECONDS).until(staleness_of(page))

    def expect_messages(self, node: Node, *texts: str) -> None:
        """The admin's list that is open came from this node, and has these messages."""
        assert self.chrome.current_url == f"{node.url}{LIST}"
        assert self.texts(".field-__str__") == list(texts)

    def is_picture(self, selector: str) -> bool:
        """Whether the browser could load the image, and it is PICTURE's size."""
        script = "const i = arguments[0]; i.loading = 'eager'; return i.decode().then(() => i.naturalWidth)"
        return bool(self.chrome.execute_script(script, self.find(selector)) == 1)


LIST = "/admin/board/message/"


def test_the_admin_through_replicas(nodes: list[Node], browser: Browser, tmp_path: Path) -> None:
    primary, replica, other = nodes
    picture, note = tmp_path / "pixel.png", tmp_path / "note.txt"
    picture.write_bytes(PICTURE)
    note.write_text("What a note says.")

    browser.open(replica, "/admin/")
    browser.fill(username="ada", password=PASSWORD)
    browser.submit("[type=submit]")
    assert browser.chrome.current_url == f"{replica.url}/admin/"
    assert browser.texts("#user-tools strong") == ["ADA"]

    browser.open(replica, f"{LIST}add/")
    browser.find("[name=author] option:nth-child(2)").click()
    browser.fill(text="Added", attachment=str(picture))
    browser.submit("[name=_save]")
    browser.expect_messages(replica, "Added")
    assert browser.texts(".messagelist .success") == ["The message “Added” was added successfully."]
    browser.open(other, LIST)
    browser.expect_messages(other, "Added")
    browser.open(other, "/")
    assert browser.is_picture(".picture img")

    # Through each node in turn, and read on the next one.
    before = "Added"
    for number in range(12):
        here, there = nodes[number % 3], nodes[(number + 1) % 3]
        browser.open(here, LIST)
        browser.expect_messages(here, before)
        browser.submit(".field-__str__ a")
        before = f"Edited {number}"
        browser.fill(text=before, attachment=str(note))
        browser.submit("[name=_save]")
        browser.expect_messages(here, before)
        browser.open(there, LIST)
        browser.expect_messages(there, before)
    browser.open(replica, "/")
    assert browser.texts(".card > a") == ["note.txt"]

    browser.open(other, LIST)
    browser.submit(".field-__str__ a")
    browser.submit(".deletelink")
    browser.submit("#content [type=submit]")
    browser.expect_messages(other)
    browser.open(replica, LIST)
    browser.expect_messages(replica)
    browser.open(primary, LIST)
    browser.expect_messages(primary)
