"""Before this node's LiteFS follows another one: what it alone has is kept (diverged.py).

A node that becomes the primary notes on its disk how far it was: its mark. When another one holds the lease, the relay
does not let its LiteFS reach that one until what may be its alone is kept. Once its databases are copies of the
primary's, what these have after all is dropped, and the mark with it. Whom it follows is noted, too: when it starts
again under the same lease, all that it has got since is that one's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from litefs_django._litefs import diverged
from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.mount import Position
from litefs_django._litefs.node.lease.state import Lease, Start, State
from litefs_django._litefs.part_file import write_whole
from litefs_django._litefs.reach import Reach

logger = logging.getLogger(__name__)

T = TypeVar("T")

NAME = "reign.json"
FOLLOWED = "followed.json"
VERSION = 1
# Seconds between two looks whether the databases are copies of the primary's, and at the longest.
_PAUSE = 0.1
_LONGEST_PAUSE = 1.0


class Divergence:
    """Follows the lease, in the event loop. `directory` is for what is noted; `nodes` reaches each node's LiteFS."""

    def __init__(self, name: str, data_path: Path, directory: Path, nodes: Reach) -> None:
        self._name = name
        self._data_path = data_path
        self._file = directory / NAME
        self._followed = directory / FOLLOWED
        self._nodes = nodes
        self._grant = 0  # the last one whose holder may be followed
        self._asked = 0
        self._task: asyncio.Task[None] | None = None
        self._told: list[diverged.Diverged] = []
        # One after the other: what a grant of before has kept, before that was cancelled, is there to be dropped.
        self._disk = ThreadPoolExecutor(1, "litefs-diverged")

    def may_follow(self, grant: int) -> bool:
        return self._grant == grant

    def begin(self, grants: int, positions: Mapping[str, Position]) -> None:
        """Notes where the reign after so many grants begins, unless an earlier one's mark is needed still.

        Blocks until it is on the disk. Raises OSError when it is not.
        """
        if not self._file.exists():
            texts = {name: str(position) for name, position in positions.items()}
            write_whole(self._file, json.dumps({"version": VERSION, "grants": grants, "positions": texts}))

    def on_change(self, state: State) -> None:
        """To be called after each change of the lease."""
        lease = state.lease
        if lease is None or lease.grant == self._asked:
            return
        self._asked = lease.grant
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if lease.node == self._name:
            self._grant = lease.grant
            return
        self._task = asyncio.get_running_loop().create_task(self._follow(lease, state.starts))

    async def _follow(self, lease: Lease, starts: tuple[Start, ...]) -> None:
        pause, said = _PAUSE, ""
        while True:
            try:
                may_be_alone = await self._on_disk(self._keep, lease, starts)
                break
            except (OSError, ValueError, LookupError, TypeError) as error:
                if str(error) != said:
                    said = str(error)
                    logger.error("It does not follow %s: what it alone may have cannot be kept: %s", lease.node, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._grant = lease.grant
        if may_be_alone:
            await self._settle(lease.node)

    def _on_disk(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._disk, work, *args)

    def _keep(self, lease: Lease, starts: tuple[Start, ...]) -> bool:
        """Whether anything may be this node's alone."""
        mark, since = self._read_mark()
        followed = self._read_followed()
        # All nodes may have begun to count anew since.
        if mark is not None:
            is_counted_anew = lease.grant <= since
            later = [it for it in starts if it.node != self._name and (it.grant > since or is_counted_anew)]
        else:
            since = followed.get("grant", lease.grant)
            later = [start for start in starts if start.grant == lease.grant or since < start.grant < lease.grant]
        if mark is not None or followed != _note(lease):
            parsed = [{name: Position.parse(text) for name, text in start.positions.items()} for start in later]
            files = diverged.ltx_files(self._data_path)
            diverged.keep(self._data_path, files, diverged.floors(files, mark, parsed))
            with suppress(OSError):  # where the one of before stays, more is compared at the next start
                write_whole(self._followed, json.dumps(_note(lease)))
        return mark is not None or bool(diverged.kept_databases(self._data_path))

    def _read_mark(self) -> tuple[dict[str, Position] | None, int]:
        """Raises OSError or ValueError when it cannot be read."""
        try:
            content = json.loads(self._file.read_text("utf-8"))
        except FileNotFoundError:
            return None, 0
        if content["version"] != VERSION:
            raise ValueError(f"{self._file} is of version {content['version']!r}, and this release knows {VERSION}")
        return {name: Position.parse(text) for name, text in content["positions"].items()}, content["grants"]

    def _read_followed(self) -> dict[str, Any]:
        """Empty where nothing is known: then this grant alone is compared."""
        try:
            note = json.loads(self._followed.read_text("utf-8"))
            return dict(note) if note["version"] == VERSION else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    async def _settle(self, holder: str) -> None:
        """Drops what the cluster has after all, as soon as that can be told, and tells of the rest."""
        awaited: dict[str, Position] = {}
        copies: set[str] = set()
        pause = _PAUSE
        while not await asyncio.to_thread(self._is_known, holder, awaited, copies):
            await asyncio.sleep(pause)
            pause = min(1.1 * pause, _LONGEST_PAUSE)
        try:
            await self._on_disk(diverged.drop_shared, self._data_path, copies)
            self._file.unlink(missing_ok=True)
        except OSError as error:
            logger.error("What was kept cannot be compared: %s", error)
        told, self._told = self._told, await self._on_disk(diverged.find, self._data_path)
        for found in (each for each in self._told if each not in told):
            logger.error(
                "Not in the cluster: transactions of %s (%d, TXID %x to %x). litefs_status shows them.",
                found.database,
                found.count,
                found.first,
                found.last,
            )

    def _is_known(self, holder: str, awaited: dict[str, Position], copies: set[str]) -> bool:
        """Whether each of the holder's databases is known to be the same here.

        `awaited` is where the holder's were when they were at least as far as these: what is here up to there has come
        from the holder, or is the same.
        """
        own, theirs = self._nodes.client(self._name, 1.0), self._nodes.client(holder, 1.0)
        try:
            if own.info().primary != holder:
                return False
            here, there = own.positions(), theirs.positions()
            for name in there.keys() - copies:
                txid = here[name].txid if name in here else 0
                if name in awaited and awaited[name].txid > txid:
                    continue
                if name in awaited and diverged.has_been_at(self._data_path, name, awaited[name]):
                    copies.add(name)
                elif there[name].txid >= txid:
                    awaited[name] = there[name]
        except (ClientError, OSError):
            return False
        return copies >= there.keys()


def _note(lease: Lease) -> dict[str, Any]:
    return {"version": VERSION, "session": lease.session, "grant": lease.grant}
