"""A planned change of primary: no acknowledged write is lost, and nobody can write for a few milliseconds only.

LiteFS itself loses a commit that is in flight when its lease goes, and exits. So the commit gates are taken first, and
the target gets all that was committed before them. Everything here blocks: it runs in a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from litefs_django._litefs.client import Info, LiteFSClient
from litefs_django._litefs.errors import ClientError, MountError, SupervisorError
from litefs_django._litefs.mount import Position, PrimaryDetector
from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.write_turn import FileLock, gate_path

_PAUSE = 0.005
_ANSWER_TIMEOUT = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait at most: `near` until the target has nearly caught up, while writers go on; the others each
    while nobody can commit.
    """

    near: float
    gates: float = 0.5
    level: float = 1.0
    role: float = 3.0


ON_REQUEST = Patience(near=10.0)
# Of the 8 s that a clean stop may take.
AT_STOP = Patience(near=0.5, level=0.5, role=0.5)


class Refused(SupervisorError):
    """The primary is not changed, for the reason given."""


class PlannedChange:
    """Hands this node's lease to another one. Thread-safe; one at a time."""

    def __init__(self, node: NodeDescription) -> None:
        self._node = node
        self._detector = PrimaryDetector(node.mount_path)
        self._client = LiteFSClient(node.urls[node.name], _ANSWER_TIMEOUT)
        self._is_under_way = threading.Lock()

    def run(self, target: str | None, say: Callable[[str], None], patience: Patience) -> str:
        """Makes the node `target` primary; None: the one that has come furthest. Returns what is true then.

        Raises Refused when everything is as it was, SupervisorError when this node has let go and it is not known
        who follows.
        """
        if not self._is_under_way.acquire(blocking=False):
            raise Refused("Another change of primary is under way on this node.")
        try:
            return self._run(target, say, patience)
        except (MountError, ClientError) as error:
            raise Refused(f"{error} {self._unchanged()}") from error
        finally:
            self._is_under_way.release()

    def _run(self, target: str | None, say: Callable[[str], None], patience: Patience) -> str:
        this = self._node.name
        self._check_this(target)
        if target == this:
            return f"{this} is the primary already."
        name, info = self._checked(target) if target is not None else self._furthest()
        client = LiteFSClient(self._node.urls[name], _ANSWER_TIMEOUT)
        say(f"waits for {name} to catch up")
        self._wait_for(client, name, self._positions(), patience.near)
        with self._held_gates(patience.gates):
            self._wait_for(client, name, self._positions(), patience.level)
            say(f"hands the lease to {name}")
            self._client.hand_off(info.node_id)
            if not _becomes(lambda: not self._is_primary(), patience.role):
                raise SupervisorError(f"LiteFS was asked to hand the lease to {name}, and {this} is still the primary.")
        if not _becomes(lambda: _is_primary(client), patience.role):
            raise SupervisorError(
                f"{this} has handed its lease to {name}, which has not become the primary within {patience.role:g} s. "
                "If it does not, another node does when the lease has run out: look at litefs_status."
            )
        return f"{name} is the primary now."

    def _unchanged(self) -> str:
        return f"Nothing is changed: {self._node.name} is the primary."

    def _check_this(self, target: str | None) -> None:
        node = self._node
        if target is not None and target not in node.urls:
            raise Refused(f'{target!r} is not one of LITEFS["NODES"]: {", ".join(sorted(node.urls))}.')
        if self._is_primary():
            if not node.is_elected and target != node.name:
                raise Refused(
                    'The lease is "static": LITEFS["PRIMARY"] alone says which node is the primary. To change it stop '
                    f"all nodes, set it on all of them, and start the new primary first. {self._unchanged()}"
                )
            return
        primary = self._detector.primary_name()
        whither = (
            f'run "manage.py litefs_promote {target or ""}" on {primary}' if primary else "no primary is known now"
        )
        raise Refused(f"{node.name} is not the primary, whose litefs_run hands the lease over: {whither}.")

    def _checked(self, name: str) -> tuple[str, Info]:
        info = LiteFSClient(self._node.urls[name], _ANSWER_TIMEOUT).info()
        if reason := self._unfit(info):
            raise Refused(f"{name} {reason}. {self._unchanged()}")
        return name, info

    def _unfit(self, info: Info) -> str:
        own = self._client.info()
        if not info.candidate:
            return "can never be primary: its lease.candidate is False"
        if info.cluster_id != own.cluster_id:
            return f"is of another cluster, {info.cluster_id}"
        if info.primary != self._node.name:
            return f"follows {info.primary or 'no primary'}, and not {self._node.name}"
        return ""

    def _furthest(self) -> tuple[str, Info]:
        """Of the nodes that can take the lease."""
        with ThreadPoolExecutor(max(1, len(self._node.other_urls))) as pool:
            found = [each for each in pool.map(self._ask, self._node.other_urls) if each is not None]
        if not found:
            raise Refused(f"No other node can take the lease. {self._unchanged()}")
        _, name, info = max(found, key=lambda each: each[0])
        return name, info

    def _ask(self, name: str) -> tuple[int, str, Info] | None:
        client = LiteFSClient(self._node.urls[name], _ANSWER_TIMEOUT)
        with suppress(ClientError):
            info = client.info()
            if not self._unfit(info):
                return sum(position.txid for position in client.positions().values()), name, info
        return None

    def _wait_for(self, client: LiteFSClient, name: str, wanted: Mapping[str, Position], timeout: float) -> None:
        """Until the node has all databases at these positions, or further."""

        def missing() -> str:
            there = client.positions()
            behind = {
                database: position.txid - (there[database].txid if database in there else 0)
                for database, position in wanted.items()
            }
            return ", ".join(f"{database} by {count:,}" for database, count in behind.items() if count > 0)

        if not _becomes(lambda: not missing(), timeout):
            raise Refused(f"{name} is behind: {missing()} transactions, after {timeout:g} s. {self._unchanged()}")

    def _positions(self) -> dict[str, Position]:
        return self._client.positions()

    def _is_primary(self) -> bool:
        return self._detector.is_primary(self._node.databases[0] if self._node.databases else "")

    @contextmanager
    def _held_gates(self, timeout: float) -> Iterator[None]:
        """No commit of this machine is under way, nor begins."""
        deadline = time.monotonic() + timeout
        gates = [FileLock(gate_path(self._node.run_path, database)) for database in self._node.databases]
        try:
            for gate in gates:
                if not gate.acquire(max(0, deadline - time.monotonic())):
                    raise Refused(f"A commit does not end ({gate.path.stem}). {self._unchanged()}")
            yield
        finally:
            for gate in gates:
                gate.close()


def _is_primary(client: LiteFSClient) -> bool:
    with suppress(ClientError):
        return client.info().is_primary
    return False


def _becomes(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True
