"""What is kept of this node's history when the lease changes. On real nodes: tests/cluster/run/test_raft.py."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from litefs_django._litefs import diverged
from litefs_django._litefs.mount import Position
from litefs_django._litefs.node.lease.divergence import FOLLOWED, NAME, Divergence
from litefs_django._litefs.node.lease.state import Lease, Start, State
from litefs_django._litefs.reach import Reach
from tests.test_diverged import position, write_ltx

HELD = 0.2


def state(grant: int, txid: int, *missed: tuple[int, int]) -> State:
    """The other node holds the lease, from when the database was at this TXID; in these grants before, from there."""
    lease = Lease(session=f"s{grant}", node="other", value="{}", ttl=3.0, grant=grant)
    starts = [Start(grant=it, node="other", positions={"a": str(position(at))}) for it, at in (*missed, (grant, txid))]
    return State(grants=grant, lease=lease, starts=tuple(starts))


def reach(here: Callable[[], Mapping[str, Position]], there: Callable[[], Mapping[str, Position]]) -> Reach:
    """Both nodes answer that they are there. In the place of LiteFS, which such moments cannot be waited for in."""
    clients = {
        name: SimpleNamespace(info=lambda: SimpleNamespace(primary="other"), positions=positions)
        for name, positions in (("this", here), ("other", there))
    }
    return cast(Reach, SimpleNamespace(client=lambda name, timeout: clients[name]))


def follow(data_path: Path, state: State, here: Callable[[], Position], there: Callable[[], Position]) -> Divergence:
    """One that has followed the other node under this lease to where that is settled."""

    async def to_the_end() -> Divergence:
        nodes = reach(lambda: {"a": here()}, lambda: {"a": there()})
        divergence = Divergence("this", data_path, data_path / "lease", nodes)
        divergence.on_change(state)
        assert divergence._task is not None
        await divergence._task
        return divergence

    return asyncio.run(to_the_end())


def test_a_grant_of_before_keeps_nothing_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The lease may change again while what was kept for the last change takes its time."""
    for txid in range(1, 6):
        write_ltx(tmp_path, "a", txid)
    has_begun, keep = threading.Event(), diverged.keep

    def keep_slowly(*args: Any) -> None:
        if not has_begun.is_set():
            has_begun.set()
            threading.Event().wait(HELD)
        keep(*args)

    monkeypatch.setattr(diverged, "keep", keep_slowly)

    async def change_twice() -> None:
        both = reach(lambda: {"a": position(5)}, lambda: {"a": position(5)})
        divergence = Divergence("this", tmp_path, tmp_path / "lease", both)
        divergence.on_change(state(1, txid=2))
        await asyncio.to_thread(has_begun.wait)
        divergence.on_change(state(2, txid=5))
        assert divergence._task is not None
        await divergence._task
        assert divergence.may_follow(2)

    asyncio.run(change_twice())
    assert diverged.find(tmp_path) == []
    assert "Not in the cluster" not in caplog.text


@pytest.fixture
def was_primary(tmp_path: Path) -> Path:
    """This node was the primary from 2 on, and has committed 4 and 5, which the other one had not got."""
    for txid in range(1, 6):
        write_ltx(tmp_path, "a", txid)
    directory = tmp_path / "lease"
    directory.mkdir()
    (directory / NAME).write_text(json.dumps({"version": 1, "grants": 0, "positions": {"a": str(position(2))}}))
    return tmp_path


def settle(data_path: Path, here: Callable[[], Position], there: Callable[[], Position]) -> None:
    """Follows the other one, which was at 3 when its reign began, until that is settled."""
    follow(data_path, state(1, txid=3), here, there)
    assert not (data_path / "lease" / NAME).exists()


def test_where_writes_never_rest_a_copy_is_known_by_its_history(was_primary: Path) -> None:
    """No look at the two nodes, one after the other, ever finds them at the same transaction."""
    txids = itertools.count(20, 10)

    def here() -> Position:
        txid = next(txids)
        write_ltx(was_primary, "a", 4, history=1)
        write_ltx(was_primary, "a", 5, history=1)
        for each in range(6, txid + 1):
            write_ltx(was_primary, "a", each, history=1)
        return position(txid, 1)

    settle(was_primary, here, lambda: position(next(txids) - 9, 1))
    assert [(it.first, it.last) for it in diverged.find(was_primary)] == [(4, 5)]


def test_what_it_alone_has_is_not_taken_for_the_cluster_s(was_primary: Path) -> None:
    """The other one is still where this node's history went through, and this node has not heard of that yet."""
    heres = iter([position(5)] * 3 + [position(6, 1)])

    def here() -> Position:
        at = next(heres)
        if at.txid == 6:
            for txid in (4, 5, 6):
                write_ltx(was_primary, "a", txid, history=1, before=int(txid > 4))
        return at

    theres = iter([position(3)] * 2 + [position(6, 1)] * 2)
    settle(was_primary, here, lambda: next(theres))
    assert [(it.first, it.last) for it in diverged.find(was_primary)] == [(4, 5)]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Above which TXIDs this node was told to keep its files, each time; it keeps none."""
    kept: list[Any] = []
    monkeypatch.setattr(diverged, "keep", lambda data_path, files, floors: kept.append(floors))
    (tmp_path / "lease").mkdir()
    return kept


def test_what_has_come_from_the_primary_is_not_kept_when_the_node_starts_again(tmp_path: Path, kept: list[Any]) -> None:
    """A busy primary's are tens of thousands, which would all have to be linked, compared and dropped."""
    write_ltx(tmp_path, "a", 2)

    def start(grant: int) -> None:
        divergence = follow(tmp_path, state(grant, txid=2), lambda: position(2), lambda: position(2))
        assert divergence.may_follow(grant)

    start(1)
    for txid in (3, 4):
        write_ltx(tmp_path, "a", txid)
    start(1)
    assert kept == [{"a": 2}]
    (tmp_path / "lease" / FOLLOWED).write_text("cut sh")
    start(1)
    start(2)
    assert kept == [{"a": 2}] * 3


def test_a_replica_that_was_ahead_keeps_that_though_it_has_missed_who_came_next(
    tmp_path: Path, kept: list[Any]
) -> None:
    for txid in range(1, 6):
        write_ltx(tmp_path, "a", txid)
    for each in (state(2, 5, (1, 2)), state(4, 9, (1, 2), (2, 5), (3, 3))):
        follow(tmp_path, each, lambda: position(5), lambda: position(5))
    assert kept == [{"a": 5}, {"a": 3}]
