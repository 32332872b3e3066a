"""What `cluster.py --check` plays: a visitor's way through the cluster, and four ways to change the primary."""

from __future__ import annotations

import os
import re
import secrets
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from http.cookiejar import CookieJar

from nodes import Node, NodeError

WAIT_SECONDS = 60
PASSWORD = "correct horse battery"


class Different(Exception):
    """Something is not as it should be; the message says what."""


def expect(what: str, found: object, wanted: object) -> None:
    """Raises Different unless both are equal."""
    if found != wanted:
        raise Different(f"{what}: expected {wanted!r}, found {found!r}")


def wait_until(check: Callable[[], None]) -> None:
    """Until the check raises Different no more; raises its last one when that takes too long."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return check()
        except Different as difference:
            if time.monotonic() > deadline:
                raise Different(f"after {WAIT_SECONDS} s still {difference}") from None
        time.sleep(0.05)


# A picture of one pixel.
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f00050001ff56c72f0d0000000049454e44ae426082"
)


@dataclass(frozen=True, slots=True)
class Page:
    """One answer. Status 0: none came."""

    status: int
    body: bytes
    content_type: str = ""

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def footer(self) -> str:
        """What its footer says of the node, as one line."""
        found = re.search(r"<footer>\s*<p>(.*?)</p>", self.text, re.DOTALL)
        return " ".join(re.sub("<[^>]*>", "", found[1]).split()) if found else ""


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Follows redirects and gives back error pages like any other."""

    def http_response(self, request: urllib.request.Request, response: HTTPResponse) -> HTTPResponse:
        return response if response.status >= 400 else super().http_response(request, response)


class Browser:
    """Keeps cookies and sends CSRF tokens. Cookies know no ports, so one login holds on all nodes."""

    def __init__(self) -> None:
        self.cookies = CookieJar()
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies), _AnyStatus())

    def get(self, url: str) -> Page:
        return self._open(url, None)

    def post(self, url: str, **fields: str) -> Page:
        return self._open(url, urllib.parse.urlencode({**fields, **self._token()}).encode())

    def upload(self, url: str, name: str, content: bytes, **fields: str) -> Page:
        """A post with this file as its `attachment` (RFC 7578)."""
        edge = secrets.token_hex()
        parts = [
            f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode()
            for key, value in {**fields, **self._token()}.items()
        ]
        header = f'Content-Disposition: form-data; name="attachment"; filename="{name}"\r\n\r\n'
        parts.append(header.encode() + content)
        body = b"".join(f"--{edge}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{edge}--\r\n".encode()
        return self._open(url, body, f"multipart/form-data; boundary={edge}")

    def _token(self) -> dict[str, str]:
        return {"csrfmiddlewaretoken": next(c.value or "" for c in self.cookies if c.name == "csrftoken")}

    def _open(self, url: str, data: bytes | None, kind: str = "application/x-www-form-urlencoded") -> Page:
        request = urllib.request.Request(url, data, {} if data is None else {"Content-Type": kind})
        try:
            with self.opener.open(request, timeout=30) as response:
                return Page(response.status, response.read(), response.headers["Content-Type"])
        except OSError as error:
            return Page(0, str(error).encode())


def find_primary(nodes: list[Node]) -> Node:
    """The one whose footer says that it is the primary. Raises Different when there is none for long."""
    found: list[Node] = []

    def look() -> None:
        found[:] = [node for node in nodes if " primary at " in Browser().get(node.url).footer]
        expect("the number of primaries", len(found), 1)

    wait_until(look)
    return found[0]


class Scenario:
    """The steps, in their order; each prints its result. The first that fails ends it."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.primary = find_primary(nodes)
        self.browser = Browser()
        self.posted: list[str] = []

    @property
    def replicas(self) -> list[Node]:
        return [node for node in self.nodes if node is not self.primary]

    def play(self) -> bool:
        """Whether everything was as it should be."""
        try:
            self.read_and_write()
            self.upload_a_picture()
            self.read_own_writes()
            self.promote_a_replica()
            self.restart_the_primary()
            self.kill_the_primary()
            self.kill_litefs()
            with self.step("stop every node cleanly"):
                for node in [*self.replicas, self.primary]:
                    node.stop()
        except (Different, NodeError):
            return False
        return True

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        try:
            yield
        except (Different, NodeError) as reason:
            print(f"failed  {text}\n        {reason}", flush=True)
            raise
        print(f"ok      {text}", flush=True)

    def read_and_write(self) -> None:
        with self.step("each node answers, and its footer says who it is"):
            self.expect_all_agree()
        with self.step(f"sign up on {self.primary.name}"):
            self.browser.get(f"{self.primary.url}/signup/")
            names = {"username": "ada", "password1": PASSWORD, "password2": PASSWORD}
            self.expect_logged_in(self.browser.post(f"{self.primary.url}/signup/", **names))
        for replica in self.replicas:
            with self.step(f"log out through {replica.name}, and log in again"):
                page = self.browser.post(f"{replica.url}/logout/")
                expect("the link to log in", "Log in" in page.text, True)
                self.browser.get(f"{replica.url}/login/")
                page = self.browser.post(f"{replica.url}/login/", username="ada", password=PASSWORD)
                self.expect_logged_in(page)
        with self.step("post twelve messages, through each node in turn"):
            for number in range(12):
                self.post_message(f"Message {number + 1} of twelve", self.nodes[number % 3])
        for node in self.nodes:
            with self.step(f"read them on {node.name}, and be logged in there"):
                self.expect_messages(node)
                self.expect_logged_in(self.browser.get(node.url))

    def upload_a_picture(self) -> None:
        with self.step(f"post a message with a picture through {self.replicas[0].name}"):
            text = "Message with a picture"
            page = self.browser.upload(f"{self.replicas[0].url}/new/", "pixel.png", PICTURE, text=text)
            expect("the answer's status", page.status, 200)
            self.posted.append(text)
            found = re.search(r'<img src="([^"]*)"', page.text)
            if found is None:
                raise Different("there is no picture on the page that follows")
        for node in self.nodes:
            with self.step(f"the same bytes come from {node.name}, as a picture"):
                self.expect_messages(node)
                page = self.browser.get(f"{node.url}{found[1]}")
                expect("the answer's status", page.status, 200)
                expect("its content type", page.content_type, "image/png")
                expect("its content", page.body, PICTURE)

    def read_own_writes(self) -> None:
        with self.step("post on one node and read it on another at once, 200 times without a miss"):
            for number in range(200):
                text = f"Message {number + 1} of two hundred"
                self.post_message(text, self.nodes[number % 3])
                page = self.browser.get(self.nodes[(number + 1) % 3].url)
                expect(f"{text!r} on the other node", text in page.text, True)

    def promote_a_replica(self) -> None:
        other, new = self.replicas
        with self.step(f"make {new.name} the primary, with litefs_promote on {other.name}"):
            other.manage("litefs_promote", new.name)
            self.primary = new
            self.expect_all_agree()
        self.write_once_more("after that")

    def restart_the_primary(self) -> None:
        old, survivors = self.primary, self.replicas
        with self.step(f"stop {old.name}, the primary, cleanly: it hands over, and the others go on"):
            old.stop()
            self.primary = find_primary(survivors)
            for node in survivors:
                self.expect_messages(node)
        self.post_on(survivors, f"while {old.name} is away")
        self.start_again(old)

    def kill_the_primary(self) -> None:
        old, survivors = self.primary, self.replicas
        began = time.monotonic()
        with self.step(f"kill -9 all processes of {old.name}, the primary: another node takes over"):
            old.kill()
            self.primary = find_primary(survivors)
        print(f"        {self.primary.name} was seen to be the primary after {time.monotonic() - began:.1f} s")
        self.post_on(survivors, f"while {old.name} is dead")
        self.start_again(old)

    def post_on(self, nodes: list[Node], when: str) -> None:
        for node in nodes:
            with self.step(f"{when}, post a message on {node.name}"):
                self.post_message(f"Message {when}, from {node.name}", node)

    def start_again(self, node: Node) -> None:
        with self.step(f"start {node.name} again; every message is on every node"):
            node.start()
            node.wait_until_it_answers()
            self.expect_all_agree()
        self.write_once_more(f"with {node.name} back")

    def kill_litefs(self) -> None:
        node = self.primary
        before = node.pids()

        def expect_another() -> None:
            now = node.pids()
            expect("the application's process id", now.get("application"), before["application"])
            expect("a LiteFS with another process id", now.get("litefs", before["litefs"]) != before["litefs"], True)

        with self.step(f"kill -9 {self.primary.name}'s LiteFS: it comes back, its application goes on running"):
            os.kill(before["litefs"], signal.SIGKILL)
            wait_until(expect_another)
        with self.step("one node is the primary again; every message is on every node"):
            self.primary = find_primary(self.nodes)
            self.expect_all_agree()
        self.write_once_more("after the kill")

    def write_once_more(self, when: str) -> None:
        for node in self.nodes:
            with self.step(f"{when}, a message posted on {node.name} reaches every node"):
                self.post_message(f"Message {when}, from {node.name}", node)
                self.expect_all_agree()

    def post_message(self, text: str, node: Node) -> None:
        page = self.browser.post(f"{node.url}/new/", text=text)
        expect("the answer's status", page.status, 200)
        expect("the message on the page that follows", text in page.text, True)
        self.posted.append(text)

    def messages(self, node: Node) -> list[str]:
        """Every message that the node shows, page by page, the newest first; [] when it shows an error."""
        found: list[str] = []
        number = 1
        while True:
            page = self.browser.get(f"{node.url}/?page={number}")
            found += re.findall(r'<div class="text"><p>(.*?)</p></div>', page.text)
            if 'rel="next"' not in page.text:
                return found
            number += 1

    def expect_messages(self, node: Node) -> None:
        """The node shows exactly what was posted."""
        expect(f"the messages on {node.name}", self.messages(node), self.posted[::-1])

    def expect_footers(self) -> None:
        """Each footer tells its node's role, and all tell the same position."""
        positions = set()
        for node in self.nodes:
            role = "primary" if node is self.primary else f"replica of {self.primary.name}"
            footer = self.browser.get(node.url).footer
            wanted = rf"Answered by {node.name} {role} at position ([0-9a-f]{{16}}), lag \d+\.\d{{3}} s"
            found = re.fullmatch(wanted, footer)
            if found is None:
                raise Different(f"the footer of {node.name}, which is {role}, says {footer!r}")
            positions.add(found[1])
        expect("the number of different positions", len(positions), 1)

    def expect_all_agree(self) -> None:
        """Within a while, for replication is asynchronous and a node may just have been started."""
        wait_until(self.expect_footers)
        for node in self.nodes:
            self.expect_messages(node)

    def expect_logged_in(self, page: Page) -> None:
        expect("the answer's status", page.status, 200)
        expect("the button to log out", "Log out" in page.text, True)
