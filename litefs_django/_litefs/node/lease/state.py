"""Which node holds the lease: commands in, states out. Pure, total and deterministic; it knows no time.

Every node applies the same commands in the same order (Raft sees to that) and so goes through the same states. What
depends on time, when an earlier holder can do no more, is decided by whoever proposes Expire (timing.py). It stands
for the part of Consul's sessions and key-value store that LiteFS's client uses (LiteFS v0.5.14, consul/consul.go).

A command that this release does not know changes nothing here. So a release that adds one proposes it only when all
nodes know it: each says its version (transport.py).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

VERSION = 1
# How many grants a node may have missed, and still know where its history ends (divergence.py).
STARTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What the holder holds.

    `session` is the session's id, `node` the holder's name, `value` what its LiteFS says of itself (JSON), `ttl`
    seconds. `grant` is the number of this grant, never used twice while a node remembers: whatever is meant for
    another grant of the same session comes too late. `count` is how often it was renewed.
    """

    session: str
    node: str
    value: str
    ttl: float
    grant: int
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How far the databases of its holder were when a grant began: TXID/checksum, by database."""

    grant: int
    node: str
    positions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """`grants` counts all grants; `cluster_id` is LiteFS's, "" until the first primary has chosen it.

    `starts` says from where the last grants began, the newest last.
    """

    cluster_id: str = ""
    grants: int = 0
    lease: Lease | None = None
    starts: tuple[Start, ...] = field(default=(), compare=False)

    def holds(self, session: str, grant: int) -> bool:
        """Whether the lease is held by this grant."""
        return self.lease is not None and (self.lease.session, self.lease.grant) == (session, grant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    """Takes the free lease. `after` is State.grants when it was seen to be free: a late one does nothing.

    `cluster_id` is what the asking LiteFS was told, and started from: one that was told none must not become the
    primary of a cluster that has data. `positions` is how far its databases are.
    """

    session: str
    node: str
    value: str
    ttl: float
    after: int
    cluster_id: str
    positions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Takes over the session of a holder that has handed it on (LiteFS's handoff), under a new grant."""

    session: str
    node: str
    value: str
    ttl: float
    grant: int
    positions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """Says that the holder is alive."""

    session: str
    grant: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Gives the lease back: its holder's LiteFS is known to have left."""

    session: str
    grant: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire:
    """Ends a lease that was not renewed since: only while `count` is still the same."""

    session: str
    grant: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetClusterId:
    """Sets LiteFS's cluster id; once set it stays."""

    cluster_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """Changes nothing: whoever sees it applied has seen all that was committed before it was asked."""


Command = Acquire | Take | Renew | Release | Expire | SetClusterId | Barrier
_COMMANDS: dict[str, type[Command]] = {kind.__name__: kind for kind in get_args(Command)}


@dataclass(frozen=True, slots=True)
class Applied:
    """Whether the command did what it says, and the state right after it."""

    is_done: bool
    state: State


def encode(command: Command) -> str:
    """The command as Raft carries it."""
    return json.dumps({"version": VERSION, "command": type(command).__name__, **asdict(command)})


def decode(text: str) -> Command | None:
    """The command; None for anything that `encode` of this release does not give."""
    try:
        fields = json.loads(text)
        if fields.pop("version") != VERSION:
            return None
        command = _COMMANDS[fields.pop("command")](**fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return command if _is_typed(command) else None


def _is_typed(command: Command) -> bool:
    kinds: dict[str, Any] = {"after": int, "grant": int, "count": int, "ttl": float, "positions": dict}
    fields = asdict(command)
    return (
        all(type(value) is kinds.get(name, str) for name, value in fields.items())
        and 0 < fields.get("ttl", 1.0) < math.inf
        and all(type(position) is str for position in fields.get("positions", {}).values())
    )


def apply(state: State, text: str) -> Applied:
    """The state after one command. Never raises."""
    match decode(text):
        case Acquire() as command:
            cluster_id = state.cluster_id or command.cluster_id
            if state.lease is not None or command.after != state.grants or command.cluster_id != cluster_id:
                return Applied(False, state)
            return Applied(True, _granted(replace(state, cluster_id=cluster_id), command))
        case Take() as command if state.holds(command.session, command.grant):
            return Applied(True, _granted(state, command))
        case Renew() as command if state.lease and state.holds(command.session, command.grant):
            return Applied(True, replace(state, lease=replace(state.lease, count=state.lease.count + 1)))
        case Release() | Expire() as command if state.lease and state.holds(command.session, command.grant):
            if isinstance(command, Expire) and command.count != state.lease.count:
                return Applied(False, state)
            return Applied(True, replace(state, lease=None))
        case SetClusterId() as command if command.cluster_id:
            new = replace(state, cluster_id=state.cluster_id or command.cluster_id)
            return Applied(new.cluster_id == command.cluster_id, new)
        case Barrier():
            return Applied(True, state)
        case _:
            return Applied(False, state)


def _granted(state: State, command: Acquire | Take) -> State:
    grant = state.grants + 1
    lease = Lease(session=command.session, node=command.node, value=command.value, ttl=command.ttl, grant=grant)
    start = Start(grant=grant, node=command.node, positions=command.positions)
    return replace(state, grants=grant, lease=lease, starts=(*state.starts[1 - STARTS :], start))


def encode_state(state: State) -> str:
    """The state as a snapshot carries it."""
    return json.dumps({"version": VERSION, **asdict(state)})


def decode_state(text: str) -> State:
    """The state that `encode_state` was given. Raises ValueError for that of another version."""
    fields = json.loads(text)
    if (version := fields.pop("version")) != VERSION:
        raise ValueError(f"a state of version {version}, and this release knows version {VERSION}")
    lease = fields.pop("lease")
    starts = tuple(Start(**start) for start in fields.pop("starts"))
    return State(lease=Lease(**lease) if lease else None, starts=starts, **fields)
