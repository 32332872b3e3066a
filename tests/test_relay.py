"""Two relays on loopback, between one who asks and a server in LiteFS's place: bytes are bytes.

The real LiteFS is in tests/cluster/test_relay.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from litefs_django._litefs.certificates import Authority, issue
from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.identity import REPLICATION
from litefs_django._litefs.node import relay as relay_module
from litefs_django._litefs.node.relay import Relay
from tests.machine import SECRET, free_ports
from tests.relays import RelayProcess, Relays, relays

OTHER_SECRET = "of another cluster, and long enough too"
MEGABYTE = 1 << 20


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()


async def is_served(found: Relays) -> bool:
    """Whether a stream from web1 reaches the LiteFS of web2."""
    reader, writer = await found.connect()
    try:
        writer.write(b"hello")
        return await reader.read(5) == b"hello"
    except ConnectionError:
        return False


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still came, when the connection has ended in one way or another."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(scenario(), 60)

    asyncio.run(run())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_bytes_go_both_ways_unchanged(host: str) -> None:
    async def scenario() -> None:
        async with relays(echo, host=host) as found:
            reader, writer = await found.connect()
            sent = os.urandom(8 * MEGABYTE)
            received, _ = await asyncio.gather(reader.readexactly(len(sent)), write(writer, sent))
            assert received == sent

    play(scenario)


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def test_whoever_ends_first_has_what_it_sent_delivered() -> None:
    data = os.urandom(8 * MEGABYTE)
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.put_nowait(await reader.read())

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await write(writer, data)

    async def scenario() -> None:
        async with relays(listen) as found:
            reader, writer = await found.connect()
            await write(writer, data)
            writer.write_eof()
            assert await received.get() == data
            assert await ended(reader) == b""
        async with relays(say) as found:
            reader, _ = await found.connect()
            assert await reader.read() == data

    play(scenario)


def test_a_port_refuses_while_its_member_does_not_hold_the_lease() -> None:
    """As either of the two nodes has heard."""

    async def scenario() -> None:
        async with relays(echo) as found:
            assert await is_served(found)
            for name in ("web1", "web2"):
                found.holders[name] = "web1"
                assert not await is_served(found)
                found.holders[name] = "web2"
            assert await is_served(found)

    play(scenario)


def test_a_lease_that_was_lost_while_connecting_refuses() -> None:
    """What is asked of LiteFS must not reach it."""
    asked: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read())

    async def scenario() -> None:
        async with relays(listen) as found:
            answers = iter([True, False])
            found.asking._holds = lambda member: next(answers)
            reader, writer = await found.connect()
            writer.write(b"hello")
            assert await ended(reader) == b""
            assert next(answers, None) is None
            assert b"hello" not in asked

    play(scenario)


@pytest.mark.parametrize("side", ["asking", "answering"])
def test_cut_ends_all_streams_of_a_member_at_once(side: str) -> None:
    async def scenario() -> None:
        async with relays(echo) as found:
            streams = [await found.connect() for _ in range(3)]
            for reader, writer in streams:
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
            getattr(found, side).cut("web1")
            for reader, writer in streams:
                writer.write(b"still")
                assert await reader.readexactly(5) == b"still"
            getattr(found, side).cut("web2")
            for reader, _ in streams:
                assert await ended(reader) == b""

    play(scenario)


def test_cut_ends_what_is_being_connected() -> None:
    """A dial that is under way is how a connection to the old primary outlives the change."""

    async def scenario() -> None:
        async with relays(echo) as found:
            with socket.create_server(("127.0.0.1", 0)) as hanging:
                found.asking._members["web2"] = f"127.0.0.1:{hanging.getsockname()[1]}"
                reader, _ = await found.connect()
                taken, _ = await asyncio.to_thread(hanging.accept)
                with taken:
                    found.asking.cut("web2")
                    assert await ended(reader) == b""

    play(scenario)


def test_silence_cuts_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    """From the connect on, though who asks goes on talking."""
    heard = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            heard.set()

    async def scenario() -> None:
        async with relays(say_nothing, silence=3.0) as found:
            reader, writer = await found.connect()
            writer.write(b"hello")
            await heard.wait()
            assert await ended(reader) == b""

    play(scenario)
    assert "A stream from web2 is cut: it said nothing for 3 s." in caplog.messages


def test_a_relay_that_does_not_answer_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with relays(echo, silence=0.3) as found:
            with socket.create_server(("127.0.0.1", 0)) as hanging:
                found.asking._members["web2"] = f"127.0.0.1:{hanging.getsockname()[1]}"
                assert not await is_served(found)

    play(scenario)
    assert "web2 cannot be reached: no answer for 0.3 s" in caplog.messages


def test_what_is_said_again_and_again_is_not_silence() -> None:
    """Nor is a pause of the one who reads: it lasts for longer than the limit here."""
    data = os.urandom(MEGABYTE)

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(20):
            await asyncio.sleep(0.1)
            writer.write(b"x")
        for _ in range(64):
            await write(writer, data)
        writer.write_eof()
        await reader.read()

    async def scenario() -> None:
        async with relays(say, silence=1.5) as found:
            reader, _ = await found.connect()
            assert await reader.readexactly(20) == b"x" * 20
            await asyncio.sleep(2.0)
            for _ in range(64):
                assert await reader.readexactly(MEGABYTE) == data

    play(scenario)


def test_memory_is_constant_however_slow_the_reader_is() -> None:
    """200 MB; the reader waits until nothing goes in any more."""
    piece = os.urandom(MEGABYTE)
    sent, received = hashlib.sha256(), hashlib.sha256()
    is_stalled = threading.Event()
    stalled_at: list[int] = []
    members = {f"web{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(2), start=1)}

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"ready")
            connection.settimeout(1.0)
            count = 0
            while count < 200 * MEGABYTE:
                left = memoryview(piece)[count % MEGABYTE :]
                try:
                    taken = connection.send(left)
                except TimeoutError:
                    stalled_at.append(count)
                    is_stalled.set()
                    continue
                sent.update(left[:taken])
                count += taken
            is_stalled.set()

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        RelayProcess("web1", members, 1) as asking,
        RelayProcess("web2", members, listener.getsockname()[1]) as answering,
    ):
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        for relay in (asking, answering):
            relay.tell("holder", "web2")
        with socket.create_connection(("127.0.0.1", asking.ports["web2"])) as connection:
            assert connection.recv(5, socket.MSG_WAITALL) == b"ready"
            before = [peak_memory(relay.pid) for relay in (asking, answering)]
            is_stalled.wait()
            while chunk := connection.recv(MEGABYTE):
                received.update(chunk)
        server.join()
        after = [peak_memory(relay.pid) for relay in (asking, answering)]
    assert received.digest() == sent.digest()
    assert stalled_at
    assert stalled_at[0] < 100 * MEGABYTE
    assert all(late - early < 16 * MEGABYTE for early, late in zip(before, after, strict=True)), (before, after)


def peak_memory(pid: int) -> int:
    """In bytes."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


# Who is let in.


async def is_let_in(found: Relays, context: ssl.SSLContext) -> bool:
    """Whether web2's relay carries what somebody sends who shows a certificate of this context."""
    try:
        reader, writer = await asyncio.open_connection(*found.address, ssl=context, server_hostname="")
    except ssl.SSLError:
        return False
    try:
        writer.write(b"hello")
        return await reader.read(5) == b"hello"
    except OSError:
        return False
    finally:
        writer.transport.abort()


def connecting(name: str, secret: str = SECRET, protocol: str = REPLICATION) -> ssl.SSLContext:
    """As that node connects; a context of its own, which may be changed."""
    identity = issue(name, (secret,))
    return replace(identity, shown=Authority(secret).issue(name)).connecting(protocol)


def strangers() -> dict[str, ssl.SSLContext]:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    trusting.set_alpn_protocols([REPLICATION])
    foreign = connecting("web1", OTHER_SECRET)
    foreign.verify_mode = ssl.CERT_NONE
    return {
        "no certificate": trusting,
        "of another cluster": foreign,
        "not in NODES": connecting("web3"),
        "this node's own name": connecting("web2"),
        "another protocol": connecting("web1", protocol="litefs-django-relay/0"),
    }


@pytest.mark.parametrize("who", strangers())
def test_strangers_are_dropped(who: str) -> None:
    reached: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer)
        await echo(reader, writer)

    async def scenario() -> None:
        async with relays(serve) as found:
            assert not await is_let_in(found, strangers()[who])
            assert reached == []
            assert await is_let_in(found, connecting("web1"))

    play(scenario)


@pytest.mark.parametrize(
    "validity",
    [
        (datetime(2000, 1, 1, tzinfo=UTC), datetime(2001, 1, 1, tzinfo=UTC)),
        (datetime(9000, 1, 1, tzinfo=UTC), datetime(9001, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_certificate_out_of_its_time_is_refused(validity: tuple[datetime, datetime]) -> None:
    async def scenario() -> None:
        async with relays(echo) as found:
            identity = replace(issue("web1", (SECRET,)), shown=Authority(SECRET, validity).issue("web1"))
            assert not await is_let_in(found, identity.connecting(REPLICATION))

    play(scenario)


def test_another_node_than_the_one_asked_for_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """An address that has been given to another node."""

    async def scenario() -> None:
        async with relays(echo) as found:
            impostor = issue("web3", (SECRET,)).listening()
            server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=impostor)
            async with server:
                found.asking._members["web2"] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
                assert not await is_served(found)

    play(scenario)
    assert "web2 cannot be reached: there is web3" in caplog.messages


def test_nodes_of_different_secrets_do_not_talk(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with relays(echo, secrets=([SECRET], [OTHER_SECRET])) as found:
            assert not await is_served(found)

    play(scenario)
    assert any("web2 cannot be reached" in message and "verify failed" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "secrets",
    [
        ([SECRET, OTHER_SECRET], [SECRET]),
        ([SECRET, OTHER_SECRET], [OTHER_SECRET, SECRET]),
        ([OTHER_SECRET], [OTHER_SECRET, SECRET]),
    ],
)
def test_secrets_are_rotated_node_by_node(secrets: tuple[list[str], list[str]]) -> None:
    """The first signs, each is accepted: in either direction."""

    async def scenario() -> None:
        for one, other in (secrets, secrets[::-1]):
            async with relays(echo, secrets=(one, other)) as found:
                assert await is_served(found)

    play(scenario)


def test_plain_text_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with relays(echo) as found:
            reader, writer = await found.connect(found.address)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert b"HTTP" not in await ended(reader)

    play(scenario)
    (message,) = caplog.messages
    assert message.startswith("127.0.0.1 is refused: ")


def test_a_handshake_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "HANDSHAKE", 0.2)

    async def scenario() -> None:
        async with relays(echo) as found:
            reader, writer = await found.connect(found.address)
            writer.write(b"\x16\x03\x01")
            assert await ended(reader) == b""

    play(scenario)


def test_the_oldest_of_many_strangers_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """So those who hang there do not keep a node out."""
    monkeypatch.setattr(relay_module, "HANDSHAKE", 1000.0)

    async def scenario() -> None:
        async with relays(echo) as found:
            hanging = [await found.connect(found.address) for _ in range(relay_module.STRANGERS + 3)]
            for reader, _ in hanging[:3]:
                assert await ended(reader) == b""
            assert await is_served(found)
            assert len(found.answering._strangers) == relay_module.STRANGERS - 1

    play(scenario)


def test_complaints_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, relay_module.__name__)

    async def scenario() -> None:
        async with relays(echo) as found:
            for _ in range(20):
                reader, writer = await found.connect(found.address)
                writer.write(b"nonsense")
                await ended(reader)

    play(scenario)
    assert len(caplog.messages) == 1


def test_a_relay_that_is_closed_leaves_nothing() -> None:
    async def scenario() -> None:
        async with relays(echo) as found:
            reader, writer = await found.connect()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            await found.asking.close()
            assert await ended(reader) == b""
            with pytest.raises(ConnectionError):
                await found.connect()

    play(scenario)


def test_a_port_in_use_is_said() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            members = {"web1": f"127.0.0.1:{port}"}
            identity = issue("web1", (SECRET,))
            relay = Relay(identity, members, litefs=("127.0.0.1", 1), control=Path("/nonexistent"), holds=bool)
            with pytest.raises(SupervisorError, match=rf"cannot listen on 127\.0\.0\.1 port {port} \(.*RELAY_PORT"):
                await relay.start()

    play(scenario)
