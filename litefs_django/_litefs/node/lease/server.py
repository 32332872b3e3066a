"""The part of Consul's HTTP API that LiteFS uses, on loopback, in front of the lease.

LiteFS believes that it is primary from when it is told "true" until a renewal is answered with 404, or none was
answered for longer than the TTL. So what is not known for certain is never answered as success, every request is
answered within two seconds, and a renewal that cannot be confirmed in time is a 404 before the deadline.

Beside it, for this node's supervisor: GET /litefs_django/status, and PUT /litefs_django/left?until=NS, when this node's
LiteFS is known to have ended, and is not started again before that moment of CLOCK_BOOTTIME unless this is answered.
Each request carries the token that litefs.yml holds, as LiteFS sends the password of its URL.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from aiohttp import web

from litefs_django._litefs.mount import Position
from litefs_django._litefs.node.lease import candidates
from litefs_django._litefs.node.lease.raft import LeaderElection, now
from litefs_django._litefs.node.lease.requests import (
    AcquireLease,
    CreateSession,
    EndSession,
    ReadClusterId,
    ReadLease,
    RenewSession,
    Request,
    WriteClusterId,
    created,
    entry,
    parse,
    session_entry,
)
from litefs_django._litefs.node.lease.state import (
    Acquire,
    Applied,
    Barrier,
    Command,
    Lease,
    Release,
    Renew,
    SetClusterId,
    State,
    Take,
)
from litefs_django._litefs.node.lease.timing import ANSWER, RETRY
from litefs_django._litefs.node.relay import Relay

logger = logging.getLogger(__name__)

TOKEN_HEADER = "X-Consul-Token"

_SESSIONS = 1000
_PAUSE = 0.01


@dataclass(slots=True)
class Held:
    """What this node's LiteFS was told that it holds; it may act until `deadline` (CLOCK_BOOTTIME, seconds)."""

    session: str
    grant: int
    deadline: float


class _Holder(TypedDict):
    session: str
    node: str
    value: str
    ttl: float


class LeaseServer:
    """Answers one node's LiteFS.

    `key` is the lease's name there; `positions` says how far its databases are, in some thread, None when it does not
    answer; `begin` is told, in some thread, where a reign begins that LiteFS has not heard of yet, and raises OSError
    when that cannot be noted; `publish` is told until when LiteFS may act, in seconds of CLOCK_BOOTTIME, before it may,
    and 0.0 once it does not any more; `relay` carries what it says to another node's.
    """

    def __init__(
        self,
        election: LeaderElection,
        *,
        key: str,
        token: str,
        positions: Callable[[], Mapping[str, Position] | None],
        begin: Callable[[int, Mapping[str, Position]], None],
        publish: Callable[[float], None],
        relay: Relay,
    ) -> None:
        self._held: Held | None = None
        self._election = election
        self._publish = publish
        self._relay = relay
        self._holder: tuple[str, int] | None = None  # node and grant, as the relay was told last
        self._key = key
        self._token = token.encode()
        self._ask_positions = positions
        self._begin_reign = begin
        self._positions: Mapping[str, Position] | None = None
        self._has_caught_up = False
        self._asked_at = -1
        self._is_asked = False
        self._told = ""  # the cluster id that LiteFS was told last
        self._ended: dict[str, None] = {}  # sessions that hold nothing, whatever is committed later
        self._asking: set[str] = set()  # sessions for which the lease is asked for just now
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.application = web.Application(client_max_size=64 << 10)
        self.application.router.add_route("*", "/{path:.*}", self._handle)

    @property
    def held(self) -> Held | None:
        """What this node holds; None once another has it, or nobody."""
        held = self._held
        return held if held and self._election.state.holds(held.session, held.grant) else None

    async def _handle(self, request: web.Request) -> web.Response:
        if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), self._token):
            return web.Response(status=403, text="This is for this node's LiteFS alone.")
        match request.method, request.path:
            case "GET", "/litefs_django/status":
                return web.json_response(self._status())
            case "PUT", "/litefs_django/left":
                return _flag(await self._left(int(request.query["until"]) / 1e9))
        asked = parse(request.method, request.path, request.query, await request.read(), self._key)
        if asked is None:
            return web.Response(status=400, text=f"Not a request of LiteFS: {request.method} {request.path}")
        return await self._answer(asked)

    async def _answer(self, request: Request) -> web.Response:
        match request:
            case ReadLease():
                if not await self._is_current():
                    return _flag(None)
                lease = self._election.state.lease
                return _found(entry(self._key, self._as_seen_here(lease), lease.session) if lease else None)
            case ReadClusterId():
                self._told = self._election.cluster_id
                return _found(entry(f"{self._key}/clusterid", self._told) if self._told else None)
            case WriteClusterId(cluster_id):
                return _flag(await self._write_cluster_id(cluster_id) or None)
            case CreateSession():
                return _found(created(str(uuid.uuid4())))
            case AcquireLease(session, value):
                return _flag(await self._acquire(session, value))
            case RenewSession(session):
                is_held = await self._renew(session)
                if is_held is None:
                    return _flag(None)
                return _found(session_entry(session, self._ttl) if is_held else None)
            case EndSession(session):
                return _flag(await self._end(session))

    async def wait_until_current(self) -> None:
        """Until this process has caught up: one that starts goes through past holders."""
        while not await self._is_current():
            await asyncio.sleep(RETRY)

    async def _is_current(self) -> bool:
        """Whether this process has once caught up."""
        if not self._has_caught_up and await self._caught_up() is not None:
            self._has_caught_up = True
            self.on_change()
        return self._has_caught_up

    def _as_seen_here(self, lease: Lease) -> str:
        """What the holder's LiteFS says of itself, with the port of this node's relay as its address."""
        if lease.node == self._election.name:
            return lease.value
        said = {"hostname": lease.node, "advertise-url": f"http://127.0.0.1:{self._relay.ports.get(lease.node, 0)}"}
        return json.dumps(said)

    @property
    def _ttl(self) -> float:
        return self._election.times.ttl

    def _status(self) -> dict[str, Any]:
        return {
            **self._election.status(),
            "state": asdict(self._election.state),
            "held": asdict(held) if (held := self.held) else None,
        }

    # What LiteFS asks for. True and False are certain; None is not, and answered with 500.

    async def _acquire(self, session: str, value: str) -> bool | None:
        await self._wait_for_leader()
        state = self._election.state
        holder = _Holder(session=session, node=self._election.name, value=value, ttl=self._ttl)
        if state.lease and state.lease.session == session and state.lease.node != self._election.name:
            self._ended.pop(session, None)  # it was this node's before
            self._positions = await asyncio.to_thread(self._ask_positions)
            return await self._granted(Take(**holder, grant=state.lease.grant, positions=self._known_positions))
        if state.lease is None:
            state = await self._best_candidate(state)
        if state.lease or session in self._ended or self._told != self._election.cluster_id:
            return False
        known = self._known_positions
        return await self._granted(Acquire(**holder, after=state.grants, cluster_id=self._told, positions=known))

    async def _wait_for_leader(self, patience: float = ANSWER / 2) -> None:
        """LiteFS asks again at once, and logs each time: without a majority for as long as that lasts."""
        until = now() + patience
        while self._election.leader is None and now() < until:
            await asyncio.sleep(_PAUSE)

    async def _granted(self, command: Acquire | Take) -> bool | None:
        session, proposed = command.session, now()
        until = proposed + self._election.times.confirmation
        self._asking.add(session)
        applied = await self._confirmed(command, until)
        if applied is not None and applied.is_done and not await self._has_begun(applied.state.grants, until):
            applied = None
        self._asking.discard(session)
        if applied is None:
            self._end_for_good(session)
            self.on_change()  # it may have been granted
            return None
        if session in self._ended or not applied.is_done or applied.state.lease is None:
            return False
        self._hold(Held(session, applied.state.lease.grant, proposed + self._ttl))
        return True

    @property
    def _known_positions(self) -> dict[str, str]:
        return {name: str(position) for name, position in (self._positions or {}).items()}

    async def _has_begun(self, grants: int, until: float) -> bool:
        """What is committed from now on may be this node's alone. Whether that is noted in time."""
        try:
            await asyncio.to_thread(self._begin_reign, grants, self._positions or {})
        except OSError as error:
            logger.error("It cannot be the primary: where its reign begins cannot be noted: %s", error)
            return False
        return now() <= until

    def _hold(self, held: Held) -> None:
        self._held = held
        self._publish(held.deadline)

    async def _renew(self, session: str) -> bool | None:
        lease = self._election.state.lease
        if lease and lease.session == session and lease.node != self._election.name:
            return True  # the first half of AcquireExisting: it asks for the lease next
        if session in self._ended:
            return False
        held = self.held
        if held and held.session == session:
            is_held = await self._renewed(session, held.grant, self._election.times.cut_off(held.deadline))
            if is_held is None:
                self._end_for_good(session)
                logger.warning("The lease could not be renewed in time: this node is not primary any more.")
            return bool(is_held)
        if lease is None or lease.session != session:
            # This process may be younger than the lease.
            applied = await self._caught_up(max(ANSWER / 2, self._ttl / 2 - 2 * self._election.times.guard))
            if applied is None:
                return None
            lease = applied.state.lease
        if lease is None or lease.session != session or lease.node != self._election.name:
            return False
        return await self._renewed(session, lease.grant, now() + ANSWER / 2)

    async def _caught_up(self, patience: float = ANSWER / 2) -> Applied | None:
        """What is committed now; None when nobody leads for so many seconds, or that is not known."""
        await self._wait_for_leader(patience)
        return await self._applied(Barrier(), now() + ANSWER / 2)

    async def _renewed(self, session: str, grant: int, until: float) -> bool | None:
        while (proposed := now()) < until:
            applied = await self._confirmed(Renew(session=session, grant=grant), min(until, proposed + ANSWER / 2))
            if applied is not None:
                if applied.is_done:
                    self._hold(Held(session, grant, proposed + self._ttl))
                return applied.is_done
            await asyncio.sleep(min(RETRY, max(0.0, until - now())))
        return None

    async def _end(self, session: str) -> bool | None:
        lease = self._election.state.lease
        self._end_for_good(session)
        return await self._release(lease) if lease and lease.session == session else False

    async def _left(self, until: float) -> bool | None:
        """This node's LiteFS has ended: nobody has to wait for its lease to expire. After `until` another may run."""
        if now() > until:
            return None
        for session in self._asking:
            self._end_for_good(session)
        caught_up = await self._caught_up()
        if caught_up is None or now() > until:
            return None
        lease = caught_up.state.lease
        return await self._end(lease.session) if lease and lease.node == self._election.name else False

    async def _write_cluster_id(self, cluster_id: str) -> bool:
        """Until it is known: LiteFS keeps its own only then, and nobody can be primary without the one that is set."""
        until = now() + 2 * ANSWER
        while now() < until:
            if applied := await self._applied(SetClusterId(cluster_id=cluster_id), now() + ANSWER):
                return applied.is_done
            await asyncio.sleep(RETRY)
        return False

    async def _release(self, lease: Lease) -> bool | None:
        if lease.node != self._election.name:
            return False
        applied = await self._applied(Release(session=lease.session, grant=lease.grant), now() + ANSWER)
        return None if applied is None else applied.is_done

    def _end_for_good(self, session: str) -> None:
        self._ended[session] = None
        if len(self._ended) > _SESSIONS:
            del self._ended[next(iter(self._ended))]

    # What Raft does.

    async def _applied(self, command: Command, until: float) -> Applied | None:
        """What the command did; None when that is not known by `until`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Applied | None] = loop.create_future()

        def settle(applied: Applied | None) -> None:
            if not future.done():
                future.set_result(applied)

        def done(applied: Applied | None) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, applied)

        self._election.propose(command, done)
        with suppress(TimeoutError):
            return await asyncio.wait_for(future, until - now())
        return None

    async def _confirmed(self, command: Acquire | Take | Renew, until: float) -> Applied | None:
        """The same, and that it was still true when a command after it was applied."""
        applied = await self._applied(command, until)
        if applied is None or not applied.is_done or applied.state.lease is None:
            return applied
        barrier = await self._applied(Barrier(), until)
        if barrier is None or now() > until:
            return None
        if barrier.state.holds(command.session, applied.state.lease.grant):
            return applied
        return Applied(False, barrier.state)

    def on_change(self) -> None:
        """To be called in the loop after each change of the election."""
        self._wake()
        lease = self._election.state.lease
        holder = None if lease is None else (lease.node, lease.grant)
        if holder != self._holder:
            if self._holder is not None:
                self._relay.cut(self._holder[0])
            self._holder = holder
        if self._held is not None and self.held is None:
            self._held = None
            self._publish(0.0)
        if lease is None:
            if self._asked_at != self._election.state.grants:
                self._begin(self._announce())
        elif lease.node != self._election.name:
            if self._has_caught_up:  # one that starts goes through past holders
                self._publish(0.0)  # the word may be an earlier lease process's
        elif lease.session in self._ended and self._held is None:
            # It was granted after LiteFS had been told that it was not. What has held it gives it back itself: until
            # then it may still act.
            self._begin(self._release(lease))

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _announce(self) -> None:
        """Tells the other nodes how far this one's databases are."""
        grants = self._asked_at = self._election.state.grants
        self._positions, self._is_asked = None, True
        positions = await asyncio.to_thread(self._ask_positions)
        self._positions, self._is_asked = positions, False
        self._election.announce(self._txids, grants)
        self._wake()

    @property
    def _txids(self) -> dict[str, int] | None:
        return None if self._positions is None else {name: it.txid for name, it in self._positions.items()}

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _best_candidate(self, state: State) -> State:
        """Waits while another node should win. Returns the state after that."""
        until = now() + candidates.HELD
        if self._positions is None and not self._is_asked:
            self._begin(self._announce())
        while (left := until - now()) > 0:
            state = self._election.state
            peers = self._election.peers.values()
            if state.lease is not None or not candidates.should_wait(self._txids or {}, peers, state.grants):
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return self._election.state


def _found(text: str | None) -> web.Response:
    if text is None:
        return web.Response(status=404)
    return web.Response(text=text, content_type="application/json")


def _flag(is_done: bool | None) -> web.Response:
    if is_done is None:
        return web.Response(status=500, text="It is not known whether this was done: no majority has answered.")
    return web.Response(text="true" if is_done else "false", content_type="application/json")
