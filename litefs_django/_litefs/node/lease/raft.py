"""The lease, kept by Raft among the members: pysyncobj 0.3.17 with the guards that DESIGN.md names.

The log is in memory alone. What it would have to be on disk for, a holder that may still act, is over when a node that
has started is admitted (timing.py); term and vote are on the disk (files.py) before anybody hears of them.
"""

from __future__ import annotations

import base64
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, SyncObjConsumer, SyncObjException, replicated
from pysyncobj.journal import MemoryJournal

from litefs_django._litefs.errors import LeaseError
from litefs_django._litefs.keys import derive_key
from litefs_django._litefs.node.lease import state as states
from litefs_django._litefs.node.lease.files import RecordFile
from litefs_django._litefs.node.lease.state import Applied, Barrier, Command, SetClusterId, State
from litefs_django._litefs.node.lease.timing import RETRY, STALLED, Admission, ExpiryTimer, Progress, Times
from litefs_django._litefs.node.lease.transport import FORGOTTEN, Entry, Hello, LeaseTransport, Positions
from litefs_django._litefs.node_file import boottime_ns

logger = logging.getLogger(__name__)

# Seconds: how long a node listens before it campaigns, at least and at most; how long a tick waits for something.
ELECTION = (0.3, 0.6)
TICK = 0.025
# Bytes. Longer ones PySyncObj cuts into pieces, of which the transport could not tell what is here already.
LONGEST_ENTRY = 16 << 20
# How many messages of its leader a member may refuse, one after the other: 13 come in a second, and more at work.
REFUSALS = 100

# Is told what was applied; None when it is not known whether the command was, or ever will be.
Done = Callable[[Applied | None], None]


def now() -> float:
    """Seconds of CLOCK_BOOTTIME."""
    return boottime_ns() / 1e9


class LeaderElection:
    """One member. Everything happens in the thread that calls `run`, the callbacks too; the rest is thread-safe.

    `members` are all members' addresses ("host:port", IPv6 without brackets) by name, `name` is this one's; `secrets`
    the cluster's, of which the first is used to talk and each to listen; `ttl` is LEASE_TTL in seconds; `directory`
    holds the Raft file. `on_change` is called after each change of `state`, `reachable` or `heard`.
    Raises LeaseError when it cannot start.
    """

    def __init__(
        self,
        name: str,
        members: Mapping[str, str],
        *,
        secrets: Sequence[str],
        ttl: float,
        directory: Path,
        is_bootstrap: bool = False,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.times = Times(ttl)
        self.members = dict(members)
        self.names = {address: name for name, address in members.items()}
        self.peers: dict[str, Hello] = {}  # what those have said last that are reachable
        self._file = RecordFile(directory)
        self._on_change = on_change
        self._timer = ExpiryTimer()
        peers = [peer for peer in members if peer != name]
        self._admission = Admission(
            self.times, peers, is_known=self._file.record.is_member, is_bootstrap=is_bootstrap, started=now()
        )
        self._positions: Positions | None = None
        self._asked_at_grants = -1
        self._retry_at: dict[str, float] = {}
        self._said = ""
        self._is_stopping = False
        self._machine = _Machine(self._changed)
        self._raft = _Raft(self, secrets)

    @property
    def state(self) -> State:
        """As far as this node has applied it."""
        return self._machine.state

    @property
    def cluster_id(self) -> str:
        """LiteFS's cluster id, "" while no member that this one has heard knows one."""
        return self.state.cluster_id or self._file.record.cluster_id

    @property
    def leader(self) -> str | None:
        """Who leads the Raft, as far as this node knows; None when it cannot be reached."""
        node = self._raft._getLeader()
        name = None if node is None else self.names[node.address]
        return name if name == self.name or name in self.peers else None

    def status(self) -> dict[str, Any]:
        """For people: what this member sees."""
        return {
            "leader": self.leader,
            "term": self._raft.raftCurrentTerm,
            "members": sorted(self.members),
            "reachable": sorted({self.name, *self.peers}),
            "left": self._timer.left(self.state, now()),
            "votes": self._admission.describe(now()),
        }

    def propose(self, command: Command, done: Done = lambda applied: None) -> None:
        """Has the command applied if it can be; `done` is called, in any thread, or never."""
        if self.leader is None or self._is_stopping:
            done(None)  # PySyncObj would wait for a leader that it cannot reach
            return
        self._machine.apply(
            states.encode(command),
            callback=lambda applied, error: done(applied if error == FAIL_REASON.SUCCESS else None),
        )

    def announce(self, positions: Positions | None, grants: int) -> None:
        """Tells all members how far this node's databases were when `grants` leases had been granted."""
        self._positions, self._asked_at_grants = positions, grants
        self._raft.transport.say_hello()
        self._raft.wake()

    def run(self) -> None:
        """Takes part until `stop`. Raises LeaseError when this process can go on no more, and should start anew."""
        try:
            while not self._is_stopping:
                self._raft.doTick(TICK)
                self._chores()
        finally:
            self._is_stopping = True
            self._raft.destroy()

    def stop(self) -> None:
        """Ends `run` soon."""
        self._is_stopping = True
        self._raft.wake()

    # For transport and journal, in Raft's thread.

    @property
    def log(self) -> Sequence[Entry]:
        return self._raft.log

    def hello(self) -> Hello:
        return Hello(
            members=self.members,
            ttl=self.times.ttl,
            cluster_id=self.cluster_id,
            term=self._file.record.term,
            is_known=self._file.record.is_member,
            positions=self._positions,
            grants=self._asked_at_grants,
        )

    def heard(self, name: str, hello: Hello) -> None:
        self._admission.heard(name, hello.term, is_known=hello.is_known)
        self._learn(hello.cluster_id)
        if self.peers.get(name) != hello:
            self.peers = {**self.peers, name: hello}
            self._on_change()

    def lost(self, name: str) -> None:
        self.peers = {peer: hello for peer, hello in self.peers.items() if peer != name}
        self._on_change()

    def may_vote(self) -> bool:
        if self._admission.is_admitted:
            return True
        if not self._admission.may_vote(now()):
            return False
        if not self._file.record.is_member:
            # It may have voted in any term up to the highest that a member knows.
            self._file.store(replace(self._file.record, is_member=True))
            self._raft.vote_above(self._admission.term)
        return True

    def store_vote(self, term: int, vote: str | None) -> None:
        self._file.store(replace(self._file.record, term=term, vote=vote))

    @property
    def first_term(self) -> tuple[int, str | None]:
        return self._file.record.term, self._file.record.vote

    def _learn(self, cluster_id: str) -> None:
        """On the disk at once: a new log begins without it."""
        if cluster_id and not self._file.record.cluster_id:
            self._file.store(replace(self._file.record, cluster_id=cluster_id))

    def _changed(self, *, is_restored: bool) -> None:
        self._timer.observe(self.state, now(), is_restored=is_restored)
        self._learn(self.state.cluster_id)
        self._on_change()

    def _chores(self) -> None:
        """What a member does by itself, between two ticks."""
        self._raft.check()
        said = self._admission.describe(now())
        if said.partition(" for another ")[0] != self._said.partition(" for another ")[0]:
            logger.info(said)
            self._said = said
        if self.leader is None:
            return
        if expire := self._timer.due(self.state, now()):
            self.propose(expire)
        if self._admission.is_missed and self._is_time("barrier"):
            self.propose(Barrier(), self._brought_up)
        forgotten = self._file.record.cluster_id if not self.state.cluster_id else ""
        if forgotten and self._raft._isLeader() and self._is_time("cluster id"):
            self.propose(SetClusterId(cluster_id=forgotten))

    def _brought_up(self, applied: Applied | None) -> None:
        if applied:
            self._admission.brought_up()

    def _is_time(self, what: str) -> bool:
        if monotonic() < self._retry_at.get(what, 0.0):
            return False
        self._retry_at[what] = monotonic() + RETRY
        return True


class _Machine(SyncObjConsumer):
    """The state, as PySyncObj replicates it."""

    def __init__(self, changed: Callable[..., None]) -> None:
        super().__init__()
        self.state = State()
        self.restored = 0  # snapshots
        self._changed = changed

    # The one replicated method: PySyncObj numbers them by name. What raised would be applied again for ever.
    @replicated
    def apply(self, command: str) -> Applied:
        applied = states.apply(self.state, command)
        if applied.state != self.state:
            self.state = applied.state
            self._changed(is_restored=False)
        return applied

    def _serialize(self) -> dict[str, str]:
        return {"state": states.encode_state(self.state)}

    def _deserialize(self, data: Mapping[str, str]) -> None:
        self.state = states.decode_state(data["state"])
        self._changed(is_restored=True)
        self.restored += 1


class _Journal(MemoryJournal):
    """The log. It ends the process when what was applied here is replaced by what others have: they have forgotten."""

    def __init__(self, owner: LeaderElection, raft: _Raft) -> None:
        super().__init__()
        self._owner = owner
        self._raft = raft
        super().setCurrentTerm(*owner.first_term)

    def setCurrentTerm(self, term: int, voted_for: str | None) -> None:  # noqa: N802
        self._owner.store_vote(term, voted_for)
        super().setCurrentTerm(term, voted_for)

    def deleteEntriesFrom(self, first: int) -> None:  # noqa: N802
        if self[first][1] <= self._raft.raftLastApplied:
            raise LeaseError(FORGOTTEN)
        super().deleteEntriesFrom(first)


class _Raft(SyncObj):
    """PySyncObj, listening before it campaigns. Its private names are those of 0.3.17: setup.cfg keeps to 0.3."""

    def __init__(self, owner: LeaderElection, secrets: Sequence[str]) -> None:
        # What is set before SyncObj is initialised stays out of its snapshots.
        self.owner = owner
        self._seal = _Seal(secrets)
        self._journal = _Journal(owner, self)
        self._ticked = monotonic()
        self._progress = Progress(STALLED)
        address = owner.members[owner.name]
        conf = SyncObjConf(
            autoTick=False,
            bindAddress=_bind_address(address),
            maxBindRetries=1,
            raftMinTimeout=ELECTION[0],
            raftMaxTimeout=ELECTION[1],
            appendEntriesPeriod=0.075,
            connectionTimeout=1.5,
            connectionRetryTime=0.5,
            leaderFallbackTimeout=ELECTION[1],
            appendEntriesUseBatch=False,
            appendEntriesBatchSizeBytes=LONGEST_ENTRY,
            commandsWaitLeader=False,
            useFork=False,
        )
        others = [other for other in owner.members.values() if other != address]
        try:
            super().__init__(address, others, conf, [owner._machine], transportClass=LeaseTransport)
        except SyncObjException as error:
            raise LeaseError(f"{address} cannot be listened on: RAFT_PORT is in use, or not this machine's.") from error
        self._journal.add(*self._SyncObj__raftLog[0])
        self._SyncObj__raftLog: Sequence[Entry] = self._journal
        self._SyncObj__raftCurrentTerm, self._SyncObj__votedForNodeId = owner.first_term

    @property
    def encryptor(self) -> _Seal:
        return self._seal

    @property
    def transport(self) -> LeaseTransport:
        transport: LeaseTransport = self._SyncObj__transport
        return transport

    @property
    def log(self) -> _Journal:
        return self._journal

    def wake(self) -> None:
        """Ends the wait of a tick. For any thread."""
        self._SyncObj__pipeNotifier.notify()

    def vote_above(self, term: int) -> None:
        """Votes in no term up to this one, or up to the one it is in."""
        if term := max(term, self._SyncObj__raftCurrentTerm):
            self._SyncObj__setCurrentTerm(term, "nobody")

    def check(self) -> None:
        """Raises LeaseError for what PySyncObj does not get out of."""
        if self.transport._server._TcpServer__fileno is None:
            raise LeaseError("The Raft port was closed: no file descriptor was left.")
        applied = self.raftLastApplied
        if self._progress.is_stalled(applied, monotonic(), is_due=applied < self.raftCommitIndex):
            raise LeaseError("What is committed cannot be applied: it starts anew.")
        if self.transport.refused > REFUSALS:
            raise LeaseError("Nothing that its leader sends fits what this member has: it starts anew.")

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:  # noqa: N802, N803
        """Raises LeaseError for a snapshot that cannot be read: PySyncObj would go on, and say that it has it."""
        restored = self.owner._machine.restored
        super()._SyncObj__loadDumpFile(clearJournal)
        if self.owner._machine.restored == restored:
            raise LeaseError("The leader's snapshot cannot be read. Is it of another release?")

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: N802, N803
        ticked, self._ticked = self._ticked, monotonic()
        was_stopped = self._ticked > ticked + ELECTION[0]
        is_alone = self.otherNodes and not self.transport.greeted
        if was_stopped or is_alone or not self.owner.may_vote():
            # A leader that is there is to be heard first: a needless campaign deposes it.
            self._SyncObj__raftElectionDeadline = self._ticked + self._SyncObj__generateRaftTimeout()
        super()._onTick(timeToWait)


class _Seal:
    """Fernet under keys from the cluster's secrets, as PySyncObj uses it: seals with the first, opens with each."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [Fernet(base64.urlsafe_b64encode(derive_key(secret, "raft 1"))) for secret in secrets]

    def encrypt_at_time(self, data: bytes, at: int) -> bytes:
        return self._keys[0].encrypt_at_time(data, at)

    def decrypt(self, token: bytes) -> bytes:
        return self._opening(token).decrypt(token)

    def extract_timestamp(self, token: bytes) -> int:
        return self._opening(token).extract_timestamp(token)

    def _opening(self, token: bytes) -> Fernet:
        for key in self._keys[:-1]:
            try:
                key.extract_timestamp(token)
            except InvalidToken:
                continue
            return key
        return self._keys[-1]


def _bind_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise LeaseError(f"{host!r} cannot be resolved ({error}): ADDRESS has to be this machine's.") from error
    return f"{found[0][4][0]}:{port}"
