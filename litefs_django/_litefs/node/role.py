"""Only the primary's supervisor changes the role: when it is asked to, and before it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from litefs_django._litefs.errors import ClientError, SupervisorError
from litefs_django._litefs.node.control import ask_primary
from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.node.gates import CommitGates
from litefs_django._litefs.node.planned_change import Patience, PlannedChange

# A clean stop has 8 s in all, and nobody waits for a node that cannot take over.
ON_STOP = Patience(answer=0.3, connect=0.5, catch_up=1.0, gates=0.3, rest=0.3, leave=0.5, arrive=0.3)
LEAVE_TIMEOUT = 3.0
_LAST_HANDOFF = 1.5  # seconds after which a stop does not begin to hand over any more

_STATIC = (
    'The lease is "static": LITEFS["PRIMARY"] alone says which node is the primary. Nothing was done. To change it:\n'
    "1. Stop litefs_run on {primary}.\n"
    "2. See in litefs_status that {name} is not behind the others.\n"
    "3. Stop litefs_run on all nodes.\n"
    '4. Set LITEFS["PRIMARY"] to {name!r} on all of them.\n'
    "5. Start {name}, then the others."
)


class Role:
    """Hands this node's role over, one change at a time. Blocks: not for the main thread."""

    def __init__(self, node: NodeDescription, gates: CommitGates) -> None:
        self._node = node
        self._gates = gates
        self._is_changing = threading.Lock()
        self._is_stopping = False

    def stop_asking(self) -> None:
        """From now on no change is begun for `promote`, and one that has not told LiteFS yet is given up."""
        self._is_stopping = True

    def promote(self, name: str, say: Callable[[str], None], *, is_forwarded: bool = False) -> str:
        """Makes that node the primary. Returns what is true then; raises SupervisorError.

        The primary does it: with a relay this node asks the primary's supervisor to, unless it was asked by one.
        """
        known, primary = self._what_is_so(name)
        if known:
            return known
        if primary != self._node.name:
            if self._node.identity is None or is_forwarded:
                raise SupervisorError(
                    f"{self._node.name} is not the primary, whose litefs_run hands the lease over; nothing was done. "
                    f'Run "manage.py litefs_promote {name}" on {primary}.'
                )
            return ask_primary(self._node.reach, primary, name, say)
        if self._is_stopping or not self._is_changing.acquire(blocking=False):
            why = "This node stops" if self._is_stopping else "Another change of primary is under way on this node"
            raise SupervisorError(f"{why}; nothing was done.")
        try:
            PlannedChange(self._node, self._gates, Patience(), say, lambda: not self._is_stopping).to(name)
        finally:
            self._gates.release()
            self._is_changing.release()
        return f"{name} is the primary now."

    def leave(self, say: Callable[[str], None]) -> None:
        """Before this node stops: hands over to the replica that has come furthest.

        Takes at most LEAVE_TIMEOUT. Raises SupervisorError.
        """
        deadline = time.monotonic() + _LAST_HANDOFF
        if not self._is_changing.acquire(timeout=_LAST_HANDOFF):
            raise SupervisorError("The change of primary that is under way does not end.")
        try:
            name = self._furthest()
            change = PlannedChange(self._node, self._gates, ON_STOP, say, lambda: time.monotonic() < deadline)
            try:
                change.to(name)
            finally:
                if not change.is_undecided:
                    self._gates.release()
        finally:
            self._is_changing.release()
        say(f"{name} is the primary now")

    def _what_is_so(self, name: str) -> tuple[str, str]:
        """Says that it is so already, "" when it can be tried; and who is the primary. Raises SupervisorError."""
        this, names = self._node.name, self._node.reach.urls
        if name not in names:
            raise SupervisorError(f'{name!r} is not one of LITEFS["NODES"]: {", ".join(sorted(names))}.')
        try:
            own = self._node.reach.client(this, 1.0).info()
        except ClientError as error:
            raise SupervisorError(f"LiteFS on this node does not answer, and nothing was done. {error}") from error
        primary = this if own.is_primary else own.primary
        if primary == name and (own.is_primary or self._says_primary(name)):
            return f"{name} is the primary already.", name
        if not self._node.is_elected:
            raise SupervisorError(_STATIC.format(primary=primary or "the primary", name=name))
        if primary is None:
            raise SupervisorError(f"{this} is not the primary, and knows of none now; nothing was done.")
        return "", primary

    def _furthest(self) -> str:
        """The candidate that has most of this node's transactions. Raises SupervisorError when there is none."""
        others = self._node.others
        with ThreadPoolExecutor(len(others) or 1) as pool:
            found = dict(zip(others, pool.map(self._txids, others), strict=True))
        best = max(found, key=lambda name: found[name], default=None)
        if best is None or found[best] < 0:
            raise SupervisorError("No other node can take the lease now.")
        return best

    def _txids(self, name: str) -> int:
        """How far all databases of that node have come together; -1 when it cannot become the primary."""
        client = self._node.reach.client(name, ON_STOP.answer)
        try:
            info = client.info()
            if info.candidate and info.primary == self._node.name:
                return sum(position.txid for position in client.positions().values())
        except ClientError:
            pass
        return -1

    def _says_primary(self, name: str) -> bool:
        try:
            return self._node.reach.client(name, 1.0).info().is_primary
        except ClientError:
            return False
