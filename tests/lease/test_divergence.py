"""What is kept of this node's history when the lease changes. On real nodes: tests/cluster/run/test_raft.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from litefs_django._litefs import diverged
from litefs_django._litefs.mount import Position
from litefs_django._litefs.node.lease.divergence import Divergence
from litefs_django._litefs.node.lease.state import Lease, Start, State
from litefs_django._litefs.reach import Reach
from tests.test_diverged import position, write_ltx

HELD = 0.2


def state(grant: int, txid: int) -> State:
    """The other node holds the lease, from when the database was at this TXID."""
    lease = Lease(session=f"s{grant}", node="other", value="{}", ttl=3.0, grant=grant)
    starts = (Start(grant=grant, node="other", positions={"a": str(position(txid))}),)
    return State(grants=grant, lease=lease, starts=starts)


def reach(positions: Mapping[str, Position]) -> Reach:
    """Both nodes answer that they are there. In the place of LiteFS, which such a moment cannot be waited for in."""
    client = SimpleNamespace(info=lambda: SimpleNamespace(primary="other"), positions=lambda: positions)
    return cast(Reach, SimpleNamespace(client=lambda name, timeout: client))


def test_a_grant_of_before_keeps_nothing_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A lease process that has started goes through past grants, each of which has this node begin to keep."""
    for txid in range(1, 6):
        write_ltx(tmp_path, "a", txid)
    has_begun, keep = threading.Event(), diverged.keep

    def keep_slowly(*args: Any) -> None:
        if not has_begun.is_set():
            has_begun.set()
            threading.Event().wait(HELD)
        keep(*args)

    monkeypatch.setattr(diverged, "keep", keep_slowly)

    async def follow() -> None:
        divergence = Divergence("this", tmp_path, tmp_path / "lease", reach({"a": position(5)}))
        divergence.on_change(state(1, txid=2))
        await asyncio.to_thread(has_begun.wait)
        divergence.on_change(state(2, txid=5))
        assert divergence._task is not None
        await divergence._task
        assert divergence.may_follow(2)

    asyncio.run(follow())
    assert diverged.find(tmp_path) == []
    assert "Not in the cluster" not in caplog.text
