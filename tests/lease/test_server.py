"""What LiteFS is answered when Raft does not answer. A fake election: the real one cannot be made to at a moment."""

from __future__ import annotations

import asyncio
import errno
import json
import selectors
import threading
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request

from litefs_django._litefs.mount import Position
from litefs_django._litefs.node.lease import server as server_module
from litefs_django._litefs.node.lease import state as states
from litefs_django._litefs.node.lease.raft import LeaderElection
from litefs_django._litefs.node.lease.requests import ReadLease
from litefs_django._litefs.node.lease.server import TOKEN_HEADER, LeaseServer
from litefs_django._litefs.node.lease.state import Acquire, Applied, Command, Release, State
from litefs_django._litefs.node.lease.timing import Times
from litefs_django._litefs.node.lease.transport import Hello, Positions
from litefs_django._litefs.node.relay import Relay

TTL = 1.5


class FakeRelay:
    """Remembers whom it has cut."""

    def __init__(self) -> None:
        self.ports = {"web2": 4321}
        self.was_cut: list[str] = []

    def cut(self, member: str) -> None:
        self.was_cut.append(member)


class Clock(selectors.DefaultSelector):
    """A loop's time, which nobody waits for: when nothing happens it goes on to where something is due."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(timeout and 0)
        if timeout and not events:
            self.now += timeout
        return events


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "now", now)


def loop_of_its_own_time() -> asyncio.AbstractEventLoop:
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    return loop


class FakeElection:
    """Commands are applied at once, unless it is cut off: then they wait, and nobody hears of them."""

    def __init__(self) -> None:
        self.name = "web1"
        self.times = Times(TTL)
        self.state = State()
        self.leader: str | None = self.name
        self.cluster_id = ""
        self.peers: Mapping[str, Hello] = {}
        self.is_cut_off = False
        self.waiting: list[Command] = []
        self.published: list[float] = []
        self.is_disk_full = False
        self.begun: list[int] = []
        self.relay = FakeRelay()
        self.on_change: Callable[[], None] = lambda: None

    def propose(self, command: Command, done: Callable[[Applied | None], None]) -> None:
        if self.is_cut_off:
            self.waiting.append(command)
        else:
            done(self.apply(command))

    def apply(self, command: Command) -> Applied:
        applied = states.apply(self.state, states.encode(command))
        self.state = applied.state
        self.on_change()
        return applied

    def begin(self, grants: int) -> None:
        if self.is_disk_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.begun.append(grants)

    def heal(self) -> None:
        self.is_cut_off = False
        for command in self.waiting:
            self.apply(command)

    def announce(self, positions: Positions | None, grants: int) -> None:
        pass


Scenario = Callable[[LeaseServer, FakeElection], Awaitable[None]]


def play(scenario: Scenario, positions: Positions | None = None) -> None:
    async def run() -> None:
        election, relay = FakeElection(), FakeRelay()
        server = LeaseServer(
            cast("LeaderElection", election),
            key="litefs",
            token="",
            positions=lambda: {name: Position(txid, "ab") for name, txid in (positions or {}).items()},
            begin=lambda grants, positions: election.begin(grants),
            publish=election.published.append,
            relay=cast("Relay", relay),
        )
        election.relay = relay
        election.on_change = server.on_change
        await scenario(server, election)
        await asyncio.gather(*server._tasks)

    with closing(loop_of_its_own_time()) as loop:
        loop.run_until_complete(run())


def other(session: str = "s9", after: int = 0) -> Acquire:
    return Acquire(session=session, node="web2", value="", ttl=TTL, after=after, cluster_id="")


def test_an_acquire_that_nobody_confirms_is_not_answered_with_true_and_is_undone_later() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.is_cut_off = True
        asked = now()
        assert await server._acquire("s1", "") is None
        assert now() - asked < 1
        assert server.held is None
        election.heal()
        await asyncio.gather(*server._tasks)
        assert election.state.grants == 1
        assert election.state.lease is None
        assert await server._acquire("s1", "") is False
        assert await server._acquire("s2", "") is True

    play(scenario)


def test_a_renewal_that_nobody_confirms_is_refused_before_the_deadline_and_stays_so() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        assert await server._acquire("s1", "") is True
        held = server.held
        assert held is not None
        election.is_cut_off = True
        assert await server._renew("s1") is False
        assert held.deadline - 2 * election.times.guard <= now() < held.deadline - election.times.guard
        election.heal()
        await asyncio.gather(*server._tasks)
        assert await server._renew("s1") is False
        # LiteFS may not have read the answer yet, and act: it gives the lease back itself.
        assert election.state.lease is not None
        assert await server._end("s1") is True
        assert election.state.lease is None

    play(scenario)


def test_a_young_process_does_not_refuse_a_renewal_because_it_knows_nothing() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.is_cut_off = True
        assert await server._renew("s1") is None
        election.is_cut_off = False
        assert await server._renew("s1") is False

    play(scenario)


def test_a_release_that_nobody_confirms_is_not_answered_with_true() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        assert await server._acquire("s1", "") is True
        election.is_cut_off = True
        assert await server._end("s1") is None
        assert Release(session="s1", grant=1) in election.waiting
        assert await server._renew("s1") is False
        election.heal()

    play(scenario)


def test_a_litefs_that_ends_while_it_asks_gets_nothing() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.is_cut_off = True
        asking = asyncio.ensure_future(server._acquire("s1", ""))
        while not election.waiting:
            await asyncio.sleep(0)
        assert await server._left(now() + 1) is None
        election.heal()
        await asyncio.gather(*server._tasks)
        assert election.state.lease is None
        assert not await asking

    play(scenario)


def test_a_litefs_that_ends_while_its_reign_is_noted_gets_nothing() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        loop, has_left = asyncio.get_running_loop(), threading.Event()

        def leave() -> None:
            asyncio.ensure_future(server._left(now() + 1)).add_done_callback(lambda _: has_left.set())

        def begin(grants: int) -> None:
            loop.call_soon_threadsafe(leave)
            assert has_left.wait(30)

        election.begin = begin  # type: ignore[method-assign]
        assert not await server._acquire("s1", "")
        assert election.published == []
        assert election.state.lease is None

    play(scenario)


def test_a_disk_that_is_too_slow_for_the_lease_gets_none() -> None:
    """LiteFS would act when another node may have it: nothing is known for longer than it is asked for."""

    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        clock = cast("Clock", asyncio.get_running_loop()._selector)  # type: ignore[attr-defined]

        def begin(grants: int) -> None:
            clock.now += 2 * TTL

        election.begin = begin  # type: ignore[method-assign]
        assert await server._acquire("s1", "") is None
        assert await server._renew("s1") is False
        assert election.published == []
        # After a handoff LiteFS does not give it back itself (LiteFS v0.5.14, consul.go, AcquireExisting).
        await asyncio.gather(*server._tasks)
        assert election.state.lease is None

    play(scenario)


def test_what_was_told_no_cluster_id_does_not_become_primary_once_there_is_one() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.cluster_id = "LFSC1"
        assert await server._acquire("s1", "") is False
        assert election.state.grants == 0

    play(scenario)


@pytest.mark.parametrize("wins", [True, False])
def test_an_acquire_waits_for_a_better_candidate_but_not_for_ever(wins: bool) -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        ahead = Hello(members={}, ttl=TTL, cluster_id="", term=1, is_known=True, positions={"db": 8}, grants=0)
        election.peers = {"web2": ahead}
        asked = now()
        asking = asyncio.ensure_future(server._acquire("s1", ""))
        await asyncio.sleep(0)
        assert election.state.grants == 0
        if wins:
            election.apply(other())
        assert await asking is not wins
        assert (now() - asked >= 0.2) is not wins
        assert election.state.lease is not None
        assert election.state.lease.node == ("web2" if wins else "web1")

    play(scenario, {"db": 7})


def test_a_session_that_was_ended_here_can_be_handed_back() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        assert await server._end("s9") is False
        election.apply(other())
        assert await server._renew("s9") is True
        assert await server._acquire("s9", "") is True
        assert await server._renew("s9") is True

    play(scenario)


def test_a_node_says_until_when_it_may_act_before_it_may_and_that_it_may_not_any_more() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        asked = now()
        assert await server._acquire("s1", "") is True
        assert server.held is not None
        assert election.published == [server.held.deadline]
        assert asked + TTL <= election.published[-1] <= now() + TTL
        await asyncio.sleep(TTL / 2)
        assert await server._renew("s1") is True
        assert len(election.published) == 2
        assert election.published[0] < election.published[1] == server.held.deadline
        assert await server._end("s1") is True
        assert election.published[2:] == [0.0]

    play(scenario)


def test_a_deadline_grows_with_nothing_that_nobody_confirms() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.is_cut_off = True
        assert await server._acquire("s1", "") is None
        assert election.published == []
        election.heal()
        await asyncio.gather(*server._tasks)
        assert election.published == []
        assert await server._acquire("s2", "") is True
        until = election.published[-1]
        election.is_cut_off = True
        assert await server._renew("s2") is False
        assert election.published[-1] == until
        election.heal()

    play(scenario)


def test_the_relay_is_told_at_each_change_of_the_holder() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        assert await server._acquire("s1", "") is True
        assert await server._renew("s1") is True
        assert election.relay.was_cut == []
        assert await server._end("s1") is True
        assert election.relay.was_cut == ["web1"]
        election.apply(other(after=1))
        # Handed on within one session, and back.
        assert await server._acquire("s9", "") is True
        assert election.relay.was_cut == ["web1", "web2"]

    play(scenario)


async def put_left(server: LeaseServer, until: float) -> tuple[int, str]:
    """Status and text."""
    path = f"/litefs_django/left?until={int(until * 1e9)}"
    answer = await server._handle(make_mocked_request("PUT", path))
    return answer.status, answer.text or ""


def test_a_supervisor_that_says_that_litefs_has_left_frees_the_lease() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        assert await put_left(server, now() + 5) == (200, "false")
        assert await server._acquire("s1", "") is True
        assert await put_left(server, now() + 5) == (200, "true")
        assert election.state.lease is None

    play(scenario)


def test_that_litefs_has_left_is_not_believed_when_it_comes_too_late() -> None:
    """Stopped, and resumed: meanwhile its supervisor may have started another LiteFS, which has the lease."""

    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        assert await server._acquire("s1", "") is True
        status, _ = await put_left(server, now() - 0.001)
        assert status == 500
        assert election.state.holds("s1", 1)
        assert await server._renew("s1") is True

    play(scenario)


def test_that_litefs_has_left_is_not_believed_when_it_is_known_too_late() -> None:
    """It is the next LiteFS that has the lease then."""

    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        assert await server._acquire("s1", "") is True
        election.leader = None
        leaving = asyncio.ensure_future(server._left(now() + 0.2))
        await asyncio.sleep(0.3)
        election.leader = election.name
        assert await leaving is None
        assert election.state.lease is not None

    play(scenario)


def test_a_process_that_starts_leaves_the_word_of_the_one_before_until_it_knows_better() -> None:
    """It goes through all holders of before, and this node may be the primary."""

    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.apply(other())
        assert election.published == []
        await server.wait_until_current()
        assert election.published == [0.0]

    play(scenario)


@pytest.mark.parametrize("token", ["", "another", "tokén"])
def test_nobody_without_the_token_is_answered(token: str) -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        server._token = b"the token"
        for method, path in (("GET", "/litefs_django/status"), ("PUT", "/litefs_django/left?until=0"), ("GET", "/x")):
            headers = {TOKEN_HEADER: token} if token else {}
            assert (await server._handle(make_mocked_request(method, path, headers=headers))).status == 403

    play(scenario)


def test_the_primary_is_shown_at_the_relay_s_port() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.apply(other())
        answer = await server._answer(ReadLease())
        (entry,) = json.loads(answer.text or "")
        assert json.loads(b64decode(entry["Value"])) == {
            "hostname": "web2",
            "advertise-url": "http://127.0.0.1:4321",
        }

    play(scenario)


def test_a_lease_of_the_past_is_not_told() -> None:
    """A lease process that has started applies what all have applied before."""

    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.apply(other())
        election.leader = None
        reading = asyncio.get_running_loop().create_task(server._answer(ReadLease()))
        await asyncio.sleep(0.1)
        election.apply(Release(session="s9", grant=1))
        election.leader = "web2"
        assert (await reading).status == 404

    play(scenario)


def test_who_cannot_note_where_its_reign_begins_is_not_primary() -> None:
    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        election.is_disk_full = True
        assert await server._acquire("s1", "") is None
        assert election.published == []
        election.on_change()
        await asyncio.gather(*server._tasks)
        assert election.state.lease is None, "it is given back"
        election.is_disk_full = False
        assert await server._acquire("s2", "") is True

    play(scenario)


def test_whether_litefs_had_the_lease_is_not_known_without_the_others() -> None:
    """A lease process that has just started knows of none: the supervisor has to ask again."""

    async def scenario(server: LeaseServer, election: FakeElection) -> None:
        assert await server._acquire("s1", "") is True
        election.is_cut_off = True
        assert (await put_left(server, now() + 60))[0] == 500
        assert election.state.lease is not None
        election.heal()
        assert (await put_left(server, now() + 60))[0] == 200
        assert election.state.lease is None

    play(scenario)
