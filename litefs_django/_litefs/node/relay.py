"""The replication between the nodes: LiteFS's HTTP API knows no authentication, so it stays on loopback.

For each other member there is a local port. What connects there reaches that member's LiteFS, through the relays of
both nodes and mutual TLS between them. One port per member, and not one for "the primary": LiteFS keeps its HTTP/2
connections by host and port, and would go on using the one to the old primary for ever.

A stream is carried only while the member whose LiteFS is asked holds the lease. node/lease/DESIGN.md has the
invariants. Beside them a node may ask another one's LiteFS how it is (client.py), and its supervisor for what the
control socket does (control.py), at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.identity import CONTROL, QUESTION, REPLICATION, Identity, peer_name
from litefs_django._litefs.node.control import address_of

logger = logging.getLogger(__name__)

# Seconds after which LiteFS is taken for dead that says nothing. A healthy one is never silent for more than 1.0 s,
# large transactions and snapshots included (measured).
SILENCE = 2.5
# Seconds for a TLS handshake, and how many who have not finished theirs may be connected: then the oldest has to go.
HANDSHAKE = 2.0
STRANGERS = 32

# What may be asked of the LiteFS of a node that does not hold the lease, one question a connection.
QUESTIONS = {b"GET /info", b"GET /debug/vars", b"GET /metrics"}
_LONGEST_QUESTION = 8 << 10
# What may be asked of another node's supervisor.
REQUESTS = {"promote", "status"}

# Bytes: what is read at once. A connection buffers three times as much at most, in each direction.
_CHUNK = 256 << 10
# Seconds that LiteFS is kept waiting for a member that cannot be reached.
_UNREACHABLE = 0.5
# Seconds between two complaints, and until the next connection is taken when no file descriptor is left.
_COMPLAINT = 30.0
_RETRY = 0.1

# Takes what was accepted, and the address at its other end.
_Serve = Callable[[socket.socket, str], Coroutine[Any, Any, None]]


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def node(self) -> str | None:
        """Who is at the other end, of a TLS connection."""
        return peer_name(self.writer.get_extra_info("ssl_object"))

    @property
    def protocol(self) -> str | None:
        """What is spoken on a TLS connection."""
        protocol: str | None = self.writer.get_extra_info("ssl_object").selected_alpn_protocol()
        return protocol

    def cut(self) -> None:
        self.writer.transport.abort()


class Relay:
    """One node's relay. All of it is used in one event loop.

    `members` are the addresses of all relays ("host:port", IPv6 without brackets) by name, `identity` is this node's;
    `litefs` is where its LiteFS answers, host and port, `control` its supervisor's socket; `holds` says whether a
    member has the lease now; `silence` is in seconds.
    """

    def __init__(
        self,
        identity: Identity,
        members: Mapping[str, str],
        *,
        litefs: tuple[str, int],
        control: Path,
        holds: Callable[[str], bool],
        silence: float = SILENCE,
    ) -> None:
        self.ports: dict[str, int] = {}  # on 127.0.0.1, by member: there since `start`
        self._name = identity.name
        self._members = dict(members)
        self._listening = identity.listening()
        self._connecting = identity.connecting(REPLICATION)
        self._litefs = litefs
        self._control = control
        self._holds = holds
        self._silence = silence
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[str, set[asyncio.Task[None]]] = {member: set() for member in members}
        self._strangers: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._next_complaint = 0.0

    async def start(self) -> None:
        """Listens. Raises SupervisorError when it cannot."""
        host, port = _host_and_port(self._members[self._name])
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            self._listen(socket.create_server(address[:2], family=family), self._serve_peer)
        except OSError as error:
            raise SupervisorError(
                f"The relay cannot listen on {host} port {port} ({error.strerror}): "
                "ADDRESS has to be this machine's, and RELAY_PORT free."
            ) from error
        for member in self._members.keys() - {self._name}:
            listener = socket.create_server(("127.0.0.1", 0))
            self.ports[member] = listener.getsockname()[1]
            self._listen(listener, partial(self._serve_litefs, member))

    async def close(self) -> None:
        """Cuts everything, and listens no more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()

    def cut(self, member: str) -> None:
        """Ends all streams to this member's LiteFS, and those that are being made.

        `holds` has to refuse it by then: who asks again is let in if it does not.
        """
        for task in self._streams.get(member, ()):  # the other nodes may know one more
            task.cancel()

    # Who connects.

    def _listen(self, listener: socket.socket, serve: _Serve) -> None:
        listener.setblocking(False)
        self._listeners.append(listener)
        self._begin(self._accept(listener, serve))

    async def _accept(self, listener: socket.socket, serve: _Serve) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, (address, *_) = await loop.sock_accept(listener)
            except OSError as error:
                self._complain("A connection cannot be taken: %s", error)
                await asyncio.sleep(_RETRY)
                continue
            # asyncio does so for the sockets that it makes itself: small answers waited 40 ms for the kernel.
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._begin(serve(accepted, address)).add_done_callback(partial(_close, accepted))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve_litefs(self, member: str, accepted: socket.socket, _: str) -> None:
        """This node's LiteFS, which asks that of `member`."""
        await self._serve(member, await _take(accepted), lambda: self._dial(member))

    async def _serve_peer(self, accepted: socket.socket, address: str) -> None:
        """Somebody, who asks this node's LiteFS. Nothing is done for a stranger but the handshake."""
        task: Any = asyncio.current_task()
        self._strangers[task] = None
        if len(self._strangers) > STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()
        try:
            peer = await _take(accepted, ssl=self._listening, ssl_handshake_timeout=HANDSHAKE)
        except OSError as error:
            self._complain("%s is refused: %s. Is its SECRET another one?", address, error)
            return
        finally:
            self._strangers.pop(task, None)
        if peer.node is None or peer.node == self._name or peer.node not in self._members:
            self._complain('%s is refused: %s is none of the other nodes in LITEFS["NODES"].', address, peer.node)
            peer.cut()
            return
        if peer.protocol == REPLICATION:
            await self._serve(self._name, peer, lambda: _reach(*self._litefs))
            return
        try:
            await self._answer(peer) if peer.protocol == QUESTION else await self._join(peer)
        except (OSError, ValueError, LookupError, TypeError, EOFError, asyncio.LimitOverrunError):
            pass  # it does not speak as a node does, or is gone
        finally:
            peer.cut()

    async def _answer(self, peer: _Connection) -> None:
        """One question to this node's LiteFS, whatever its role is."""
        async with asyncio.timeout(self._silence):
            head = await peer.reader.readuntil(b"\r\n\r\n")
            if len(head) > _LONGEST_QUESTION or head.partition(b" HTTP/1.1\r\n")[0] not in QUESTIONS:
                return
            litefs = await _reach(*self._litefs)
        try:
            litefs.writer.write(head.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n")
            await self._pump(litefs.reader, peer.writer, asyncio.get_running_loop().time())
        finally:
            litefs.cut()

    async def _join(self, peer: _Connection) -> None:
        """Joins it with the supervisor's control socket, which has its own patience, for what other nodes may ask."""
        async with asyncio.timeout(self._silence):
            line = await peer.reader.readuntil(b"\n")
        if json.loads(line)["request"] not in REQUESTS:
            return
        with address_of(self._control) as address:
            control = await _connection(
                lambda protocol: asyncio.get_running_loop().create_unix_connection(protocol, address)
            )
        try:
            control.writer.write(line)
            await self._carry(CONTROL, peer, control, None)
        finally:
            control.cut()

    async def _dial(self, member: str) -> _Connection:
        """Raises OSError."""
        host, port = _host_and_port(self._members[member])
        peer = await _reach(host, port, ssl=self._connecting, server_hostname="")
        if peer.node != member:
            peer.cut()
            raise ConnectionError(f"there is {peer.node}")
        return peer

    # What is carried.

    async def _serve(self, holder: str, asking: _Connection, dial: Callable[[], Awaitable[_Connection]]) -> None:
        """One stream to the LiteFS of `holder`, from the connection on."""
        task: Any = asyncio.current_task()
        self._streams[holder].add(task)
        try:
            if self._holds(holder):
                await self._connect(holder, asking, dial)
        finally:
            self._streams[holder].discard(task)
            asking.cut()

    async def _connect(self, holder: str, asking: _Connection, dial: Callable[[], Awaitable[_Connection]]) -> None:
        since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._silence):
                answering = await dial()
        except OSError as error:
            self._complain("%s cannot be reached: %s", holder, str(error) or f"no answer for {self._silence:g} s")
            # LiteFS asks again at once, until another one holds the lease, which cuts this off.
            await asyncio.sleep(_UNREACHABLE)
            return
        try:
            if self._holds(holder):
                await self._carry(holder, asking, answering, since)
        finally:
            answering.cut()

    async def _carry(self, holder: str, asking: _Connection, answering: _Connection, since: float | None) -> None:
        """Until one side ends, or LiteFS, last heard at `since`, is silent. Who asks may be."""
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(asking.reader, answering.writer, None))
                both.create_task(self._pump(answering.reader, asking.writer, since))
        except* TimeoutError:
            self._complain("A stream from %s is cut: it said nothing for %g s.", holder, self._silence)
        except* OSError:
            pass

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, since: float | None) -> None:
        """Carries what one side says until it ends; the other one ends with it, when it has all.

        `since` is when it was last heard; silence counts while reading alone, not while the other side is slow.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as patience:
            while True:
                patience.reschedule(since and since + self._silence)
                chunk = await reader.read(_CHUNK)
                patience.reschedule(None)
                if not chunk:
                    break
                writer.write(chunk)
                await writer.drain()
                since = since and loop.time()
            patience.reschedule(loop.time() + self._silence)
            writer.close()
            await writer.wait_closed()

    def _complain(self, message: str, *args: object) -> None:
        """At most so often: who tries again all the time would fill the log."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_complaint:
            self._next_complaint = now + _COMPLAINT
            logger.warning(message, *args)


class _Protocol(asyncio.StreamReaderProtocol, asyncio.BufferedProtocol):
    """Reads into one buffer: half of the time would go into memory that is allocated for each read (measured)."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self._reader = reader
        self._read = memoryview(bytearray(_CHUNK))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.feed_data(self._read[:nbytes])


async def _connection(open_with: Callable[[Callable[[], _Protocol]], Awaitable[tuple[Any, _Protocol]]]) -> _Connection:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_CHUNK, loop)
    transport, protocol = await open_with(lambda: _Protocol(reader))
    return _Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def _take(accepted: socket.socket, **tls: Any) -> _Connection:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    return await _connection(lambda protocol: loop.connect_accepted_socket(protocol, accepted, **tls))


async def _reach(host: str, port: int, **tls: Any) -> _Connection:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    return await _connection(lambda protocol: loop.create_connection(protocol, host, port, **tls))


def _close(accepted: socket.socket, _: object) -> None:
    accepted.close()


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
