"""What nodes ask each other through the relays beside the replication: of LiteFS how it is, of supervisors a change."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from litefs_django._litefs.certificates import issue
from litefs_django._litefs.client import LiteFSClient, Peer
from litefs_django._litefs.errors import ClientError, SupervisorError
from litefs_django._litefs.identity import CONTROL, QUESTION
from litefs_django._litefs.node.control import ControlServer, Say, ask_node
from litefs_django._litefs.node.waiting import nobody
from litefs_django._litefs.reach import Reach
from tests.machine import SECRET
from tests.relays import Relays, relays
from tests.test_client import INFO
from tests.test_relay import OTHER_SECRET, connecting, ended, play

WEB1 = issue("web1", (SECRET,))


class AnsweringLiteFS:
    """Says INFO to everything, as LiteFS says it, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heard.append(head)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(INFO), INFO))
        await writer.drain()
        if b"Connection: close" not in head:
            self.heard.append(await reader.read())


def url_of(found: Relays) -> str:
    return f"https://{found.address[0]}:{found.address[1]}"


async def ask(found: Relays, request: bytes, protocol: str = QUESTION, **who: str) -> bytes:
    """What comes back for these bytes, b"" when nothing does."""
    context = connecting(**{"name": "web1", **who}, protocol=protocol)
    try:
        reader, writer = await asyncio.open_connection(*found.address, ssl=context, server_hostname="")
        found.writers.append(writer)
        writer.write(request)
        return await ended(reader)
    except OSError:
        return b""


def test_a_node_answers_whoever_holds_the_lease() -> None:
    litefs = AnsweringLiteFS()

    async def scenario() -> None:
        async with relays(litefs.serve) as found:
            for holder in ("web2", "web1", ""):
                found.holders.update(web1=holder, web2=holder)
                client = LiteFSClient(url_of(found), peer=Peer("web2", WEB1))
                assert (await asyncio.to_thread(client.info)).cluster_id == "LFSC1"

    play(scenario)


def test_an_answered_question_leaves_no_connection() -> None:
    """Many are asked in a second while a node waits for another one to catch up."""
    litefs = AnsweringLiteFS()

    async def scenario() -> None:
        async with relays(litefs.serve) as found:
            before = len(found.answering._tasks)
            await asyncio.to_thread(LiteFSClient(url_of(found), peer=Peer("web2", WEB1)).info)
            while len(found.answering._tasks) > before:
                await asyncio.sleep(0.01)

    play(scenario)


@pytest.mark.parametrize("path", ["/info", "/debug/vars", "/metrics"])
def test_what_may_be_asked(path: str) -> None:
    litefs = AnsweringLiteFS()

    async def scenario() -> None:
        async with relays(litefs.serve) as found:
            question = b"GET %s HTTP/1.1\r\nHost: x\r\n" % path.encode()
            assert (await ask(found, question + b"\r\n")).endswith(INFO)
            assert litefs.heard == [question + b"Connection: close\r\n\r\n"]

    play(scenario)


@pytest.mark.parametrize(
    "request_line",
    [
        "POST /info",
        "POST /promote",
        "POST /handoff?nodeID=1",
        "POST /stream",
        "GET /export?name=db",
        "GET /info?x",
        "GET /info/",
        "GET  /info",
        "GET http://x/info",
        "PRI *",
        "",
    ],
)
def test_what_may_not(request_line: str) -> None:
    """Nothing of it reaches LiteFS, which would do it: it knows no authentication."""
    litefs = AnsweringLiteFS()

    async def scenario() -> None:
        async with relays(litefs.serve) as found:
            assert await ask(found, f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) == b""
            long = b"GET /info HTTP/1.1\r\nX: " + b"x" * (9 << 10) + b"\r\n\r\n"
            assert await ask(found, long) == b""

    play(scenario)
    assert litefs.heard == []


def test_one_question_a_connection() -> None:
    """What comes after it is not passed on."""
    litefs = AnsweringLiteFS()
    question = b"GET /info HTTP/1.1\r\nHost: x\r\n"

    async def scenario() -> None:
        async with relays(litefs.serve, silence=0.5) as found:
            assert (await ask(found, question + b"\r\nPOST /promote HTTP/1.1\r\nHost: x\r\n\r\n")).endswith(INFO)

    play(scenario)
    assert litefs.heard == [question + b"Connection: close\r\n\r\n"]


def test_who_does_not_come_to_a_question_is_dropped() -> None:
    async def scenario() -> None:
        async with relays(AnsweringLiteFS().serve, silence=0.3) as found:
            assert await ask(found, b"GET /info HTTP/1.1\r\n") == b""

    play(scenario)


@pytest.mark.parametrize("who", [{"name": "web3"}, {"name": "web2"}, {"name": "web1", "secret": OTHER_SECRET}])
@pytest.mark.parametrize("protocol", [QUESTION, CONTROL])
def test_nothing_for_strangers(who: dict[str, str], protocol: str, tmp_path: Path) -> None:
    litefs, asked = AnsweringLiteFS(), Asked()

    async def scenario() -> None:
        with asked.serving(tmp_path):
            async with relays(litefs.serve, control=tmp_path / "control") as found:
                request = b"GET /info HTTP/1.1\r\n\r\n" if protocol == QUESTION else STOP
                assert await ask(found, request, protocol, **who) == b""

    play(scenario)
    assert litefs.heard == []
    assert asked.requests == []


def test_another_node_than_the_one_that_is_asked_for(tmp_path: Path) -> None:
    """An address that was given to another node: neither question nor change is for that one."""
    litefs, asked = AnsweringLiteFS(), Asked()

    async def scenario() -> None:
        with asked.serving(tmp_path):
            async with relays(litefs.serve, control=tmp_path / "control") as found:
                client = LiteFSClient(url_of(found), peer=Peer("web3", WEB1))
                with pytest.raises(ClientError, match="there is web2, and not web3"):
                    await asyncio.to_thread(client.info)
                with pytest.raises(SupervisorError, match=r"litefs_run of web3 has not answered .* there is web2"):
                    await ask_supervisor(found, "stop", name="web3")

    play(scenario)
    assert litefs.heard == []
    assert asked.requests == []


def test_another_secret_is_said_to_be_one() -> None:
    async def scenario() -> None:
        async with relays(AnsweringLiteFS().serve) as found:
            nodes = Reach({"web1": "", "web2": url_of(found)}, issue("web1", (OTHER_SECRET,)))
            with pytest.raises(ClientError, match="shows a certificate that is not of this SECRET"):
                await asyncio.to_thread(nodes.client("web2").info)
            awaited = await asyncio.to_thread(nobody, nodes, ["web2"])
            assert awaited.startswith("a primary to synchronise with (web2: https://")
            assert awaited.endswith(" shows a certificate that is not of this SECRET)")

    play(scenario)


def test_a_relay_that_accepts_and_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClientError, match=r"did not answer within 0\.2 s"):
            LiteFSClient(url, 0.2, Peer("web2", WEB1)).info()


# Supervisors.

STOP = b'{"version": 1, "request": "stop"}\n'


class Asked:
    """A supervisor's control socket, and what was asked there."""

    def __init__(self) -> None:
        self.requests: list[Mapping[str, Any]] = []

    def serving(self, run_path: Path) -> Any:
        server = ControlServer(run_path, {"promote": self._promote, "stop": self._stop})

        class Closing:
            def __enter__(self) -> None:
                pass

            def __exit__(self, *error: object) -> None:
                server.close()

        return Closing()

    def _promote(self, request: Mapping[str, Any], say: Say) -> str:
        self.requests.append(request)
        say("waits")
        if request.get("node") == "web9":
            raise SupervisorError("There is no web9.")
        return "It is."

    def _stop(self, request: Mapping[str, Any], say: Say) -> str:
        self.requests.append(request)
        return "It stops."


def ask_supervisor(
    found: Relays, request: str, say: Callable[[str], None] = lambda text: None, *, name: str = "web2", **arguments: Any
) -> Awaitable[Any]:
    nodes = Reach({name: url_of(found)}, WEB1)
    return asyncio.to_thread(ask_node, nodes, name, request, say, timeout=5.0, **arguments)


def test_a_supervisor_is_asked_through_the_relay(tmp_path: Path) -> None:
    asked = Asked()
    said: list[str] = []

    async def scenario() -> None:
        with asked.serving(tmp_path):
            async with relays(AnsweringLiteFS().serve, control=tmp_path / "control") as found:
                assert await ask_supervisor(found, "promote", said.append, node="web1", forwarded=True) == "It is."
                with pytest.raises(SupervisorError, match=r"There is no web9\."):
                    await ask_supervisor(found, "promote", said.append, node="web9", forwarded=True)

    play(scenario)
    assert said == ["waits", "waits"]
    assert asked.requests[0] == {"version": 1, "request": "promote", "node": "web1", "forwarded": True}


def test_a_node_without_a_supervisor(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with relays(AnsweringLiteFS().serve, control=tmp_path / "control") as found:
            with pytest.raises(SupervisorError, match=r"ended before it was done|has not answered"):
                await ask_supervisor(found, "promote", node="web1")

    play(scenario)


@pytest.mark.parametrize("line", [STOP, b"{}\n", b"[]\n", b"5\n", b"{\n", b"\xff\n", b'{"request": []}\n', b"\n"])
def test_nobody_stops_another_node(line: bytes, tmp_path: Path) -> None:
    """Nor is anything passed on that is no request: what a node may ask of another one is on a list."""
    asked = Asked()

    async def scenario() -> None:
        with asked.serving(tmp_path):
            async with relays(AnsweringLiteFS().serve, control=tmp_path / "control") as found:
                assert await ask(found, line, CONTROL) == b""

    play(scenario)
    assert asked.requests == []
