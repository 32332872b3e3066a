"""PySyncObj's TCP transport, for members of one cluster that agree on what it is.

What this adds to pysyncobj 0.3.17:
- a hello, from each side of a connection, at once and every KEEPALIVE seconds. Until it has arrived, and while it
  disagrees with ours, nothing else is sent or heard. Without it followers never talk to each other, and the first
  request for a vote is lost on a connection that has timed out (tcp_connection.py:227).
- a connection that is not up within PATIENCE is tried again. The kernel of a stopped process takes six connections
  and then drops the SYN: the connecting side waited for the kernel's next one, up to a minute.
- the old connection of a member that has connected again is closed.
- a snapshot's chunk never commits anything: the receiver's own log is not verified yet (syncobj.py:1022).
- entries that are here already are not cut off to be added again (syncobj.py:991): for a moment a member would not
  have what it has confirmed, or applied.
- a leader that has to go back is told at once how far: to what is committed, which is the same on all members. It went
  back by one entry for each message, and to the end again for each message that was on its way meanwhile
  (syncobj.py:978): where an answer takes longer than the time between two messages, for ever.
- an answer to a leader says its term, and is not heard in a later one: of what it confirms something may be gone.
- no vote is asked for or given before the node is admitted (timing.py).
- strangers: 32 at a time, for PATIENCE seconds, 64 kB each; no read-only nodes, no commands of its admin tool.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any, Protocol

from pysyncobj.node import TCPNode
from pysyncobj.tcp_connection import CONNECTION_STATE, TcpConnection
from pysyncobj.transport import TCPTransport

from litefs_django._litefs.errors import LeaseError

logger = logging.getLogger(__name__)

FORGOTTEN = "The other members have lost what this one has applied: it starts anew."

VERSION = 1
KEEPALIVE = 0.25
PATIENCE = 1.0

_STRANGERS = 32
_LONGEST_GREETING = 64 << 10

# Command, index and term.
Entry = tuple[bytes, int, int]

# Of a database on one node: how many transactions it has.
Positions = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a member says of itself.

    `members` are the addresses by name, `ttl` is LEASE_TTL in seconds; `term` is the one on its disk, `is_known` False
    while it may have lost its vote. `positions` is how far its databases are, None when its LiteFS does not answer,
    and was asked when `grants` leases had been granted; -1 before it was asked for the first time.
    """

    members: Mapping[str, str]
    ttl: float
    cluster_id: str
    term: int
    is_known: bool
    positions: Positions | None = None
    grants: int = -1
    version: int = VERSION
    type: str = field(default="hello", init=False)


def disagreement(ours: Hello, theirs: Mapping[str, Any]) -> str:
    """Why we do not talk to a member; "" when we do. Majorities of lists that differ by one member still meet."""
    if theirs.get("version") != VERSION:
        return f"it speaks version {theirs.get('version')!r}, this node version {VERSION}: run the same release"
    names = ours.members.keys() | theirs["members"].keys()
    different = sorted(name for name in names if ours.members.get(name) != theirs["members"].get(name))
    if len(different) > 1:
        return f'LITEFS["NODES"] differ by more than one node: {", ".join(different)}. Change one at a time'
    if theirs["ttl"] != ours.ttl:
        return f'LITEFS["LEASE_TTL"] is {theirs["ttl"]:g} s there, {ours.ttl:g} s here: make them equal'
    if theirs["cluster_id"] and ours.cluster_id and theirs["cluster_id"] != ours.cluster_id:
        return (
            f"its databases are those of another cluster: {theirs['cluster_id']} there, {ours.cluster_id} here. "
            "Give one of the two another SECRET, or an empty DATA_PATH"
        )
    return ""


def _is_news(message: dict[str, Any], log: Sequence[Entry]) -> bool:
    """Makes a leader's message harmless, as the list above says; whether something is left of it.

    An entry's index and term say what it is, and what is before it (the log matching property of Raft). A message of
    which the log has all, and nothing after it, is left as a heartbeat.
    """
    if "prevLogIdx" not in message:
        message["commit_index"] = 0
    entries: Sequence[Entry] = message.get("entries", ())
    known = 0
    for _, index, term in entries:
        place = index - log[0][1]
        if not 0 <= place < len(log) or log[place][2] != term:
            break
        known += 1
    if known:
        _, message["prevLogIdx"], message["prevLogTerm"] = entries[known - 1]
        message["entries"] = entries[known:]
    return not known or known < len(entries) or message["prevLogIdx"] == log[-1][1]


def _is_forgotten(message: Mapping[str, Any], log: Sequence[Entry], applied: int) -> bool:
    """Whether the leader goes on from something else than what this member has, and has applied, in that place."""
    before: int | None = message.get("prevLogIdx")
    if before is None or not log[0][1] <= before <= applied:
        return False
    return bool(log[before - log[0][1]][2] != message["prevLogTerm"])


class Owner(Protocol):
    """What the transport is told by, and tells: raft.LeaderElection."""

    names: Mapping[str, str]  # by address

    @property
    def log(self) -> Sequence[Entry]: ...

    def hello(self) -> Hello: ...
    def heard(self, name: str, hello: Hello) -> None: ...
    def lost(self, name: str) -> None: ...
    def may_vote(self) -> bool: ...


class LeaseTransport(TCPTransport):
    """All of it runs in the thread that ticks."""

    def __init__(self, sync_obj: Any, self_node: TCPNode, other_nodes: set[TCPNode]) -> None:
        self._owner: Owner = sync_obj.owner
        self._up: set[TCPNode] = set()  # both sides have shown that they know the secret
        self.greeted: set[TCPNode] = set()
        self.refused = 0  # messages of a leader, since one was accepted
        self._complaints: dict[TCPNode, str] = {}
        self._strangers: dict[TcpConnection, float] = {}
        self._next_hello = 0.0
        super().__init__(sync_obj, self_node, other_nodes)

    def send(self, node: TCPNode, message: dict[str, Any]) -> bool:
        if node not in self.greeted or (message["type"] == "request_vote" and not self._owner.may_vote()):
            return False
        if message["type"] == "next_node_idx":
            message["term"] = self._syncObj.raftCurrentTerm
            self.refused = self.refused + 1 if message["reset"] else 0
            if message["reset"]:
                message["next_node_idx"] = max(self._syncObj.raftCommitIndex, self._syncObj.raftLastApplied) + 1
        return bool(super().send(node, message))

    def say_hello(self) -> None:
        """With the next tick."""
        self._next_hello = 0.0

    def _greet(self, *nodes: TCPNode) -> None:
        hello = asdict(self._owner.hello())
        for node in nodes:
            super().send(node, hello)

    def _onNodeConnected(self, node: TCPNode) -> None:  # noqa: N802
        self._up.add(node)
        self._greet(node)

    def _onNodeDisconnected(self, node: TCPNode) -> None:  # noqa: N802
        self._up.discard(node)
        self._part(node)

    def _part(self, node: TCPNode) -> None:
        if node in self.greeted:
            self.greeted.discard(node)
            self.refused = 0
            super()._onNodeDisconnected(node)
            self._owner.lost(self._owner.names[node.address])

    def _onMessageReceived(self, node: TCPNode, message: dict[str, Any]) -> None:  # noqa: N802
        if message["type"] == "hello":
            self._hear(node, message)
        elif node in self.greeted and self._is_welcome(message):
            super()._onMessageReceived(node, message)

    def _is_welcome(self, message: dict[str, Any]) -> bool:
        if message["type"] == "request_vote":
            return self._owner.may_vote()
        if message["type"] == "next_node_idx":
            return bool(message["term"] == self._syncObj.raftCurrentTerm)
        if message["type"] != "append_entries":
            return True
        is_current = message["term"] >= self._syncObj.raftCurrentTerm
        if is_current and _is_forgotten(message, self._owner.log, self._syncObj.raftLastApplied):
            raise LeaseError(FORGOTTEN)
        return _is_news(message, self._owner.log)

    def _hear(self, node: TCPNode, message: dict[str, Any]) -> None:
        name = self._owner.names[node.address]
        complaint = disagreement(self._owner.hello(), message)
        if complaint != self._complaints.get(node, ""):
            self._complaints[node] = complaint
            logger.error("No talk with %s: %s.", name, complaint) if complaint else logger.info("%s agrees now.", name)
        if complaint:
            self._part(node)
            return
        del message["type"]
        self._owner.heard(name, Hello(**message))
        if node not in self.greeted:
            self.greeted.add(node)
            super()._onNodeConnected(node)

    def _onNewIncomingConnection(self, conn: TcpConnection) -> None:  # noqa: N802
        super()._onNewIncomingConnection(conn)
        if len(self._unknownConnections) > _STRANGERS:
            conn.disconnect()

    def _onIncomingMessageReceived(self, conn: TcpConnection, message: object) -> None:  # noqa: N802
        if conn.sendRandKey:
            node = self._nodeAddrToNode.get(message) if isinstance(message, str) else None
            if node is None:
                conn.disconnect()
                return
            old = self._connections.get(node)
            if old is not None and old is not conn:
                old.disconnect()
        super()._onIncomingMessageReceived(conn, message)

    def _onTick(self) -> None:  # noqa: N802
        super()._onTick()
        now = monotonic()
        for node, conn in list(self._connections.items()):
            is_trying = node not in self._up and conn.state != CONNECTION_STATE.DISCONNECTED
            if is_trying and now > self._lastConnectAttempt.get(node, now) + PATIENCE:
                conn.disconnect()
        self._strangers = {conn: self._strangers.get(conn, now) for conn in self._unknownConnections}
        for conn, since in self._strangers.items():
            if now > since + PATIENCE or len(conn._TcpConnection__readBuffer) > _LONGEST_GREETING:
                conn.disconnect()
        if now >= self._next_hello:
            self._next_hello = now + KEEPALIVE
            self._greet(*self._up)
