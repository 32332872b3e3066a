"""A planned change of primary: this node hands its lease to another one, and no acknowledged write is lost.

What LiteFS is in the middle of committing when it hands over is lost, and it exits (99). So all commits of this
machine are held off meanwhile, and the other node has everything before LiteFS is told. All is asked of the two
LiteFS over HTTP, with time-outs: the mount of a LiteFS that hangs would hang us, and our gates with us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from litefs_django._litefs.client import Info, LiteFSClient
from litefs_django._litefs.errors import ClientError, SupervisorError
from litefs_django._litefs.mount import Position
from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.node.gates import CommitGates

_T = TypeVar("_T")

# Seconds. A node that has within this time what the primary had has nearly caught up.
_NEAR = 0.25
_PAUSE = 0.002
_BETWEEN_SENTENCES = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long each step may take, in seconds. From `gates` on nobody commits."""

    answer: float = 1.0
    connect: float = 3.0
    catch_up: float = 30.0
    gates: float = 1.0
    rest: float = 1.0
    # LiteFS gives up a handoff that it has taken after 5 s (store.go, processHandoff).
    leave: float = 6.0
    arrive: float = 2.0


class PlannedChange:
    """One attempt, which blocks: not for the main thread.

    `say` gets sentences. When `is_wanted` says no before LiteFS was told, the attempt ends. The gates are the caller's
    to release afterwards; `is_undecided` says that LiteFS was told, and may still act on it.
    """

    def __init__(
        self,
        node: NodeDescription,
        gates: CommitGates,
        patience: Patience,
        say: Callable[[str], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        self.is_undecided = False
        self._node = node
        self._gates = gates
        self._patience = patience
        self._say = say
        self._is_wanted = is_wanted
        self._own = node.reach.client(node.name, patience.answer)

    def to(self, name: str) -> None:
        """Makes that other node the primary, and returns when it is. Raises SupervisorError that says what is known."""
        target = _Target(name, self._node.reach.client(name, self._patience.answer), self._unchanged)
        self._wait_until_connected(target)
        self._wait_until_near(target)
        if missing := self._gates.take(self._patience.gates):
            raise SupervisorError(
                f"A commit does not end ({', '.join(missing)}): does its process hang? {self._unchanged}"
            )
        self._wait_for_the_rest(target)
        self._hand_off(target)
        self._wait_until_left(target)
        self._wait_until_arrived(target)

    @property
    def _unchanged(self) -> str:
        return f"Nothing is changed: {self._node.name} is the primary."

    def _wait_until_connected(self, target: _Target) -> None:
        self._say(f"waits for {target.name} to catch up")
        own = self._ask_own(self._own.info)
        if not own.is_primary:
            raise SupervisorError(f"{self._node.name} is not the primary any more; nothing was done.")

        def look() -> str:
            info = target.info()
            target.check(info, own.cluster_id)
            return "" if info.primary == self._node.name else f"it follows {info.primary or 'nobody'}"

        self._until(look, self._patience.connect, f"{target.name} is connected to {self._node.name}")

    def _wait_until_near(self, target: _Target) -> None:
        """Commits go on meanwhile: it is measured how long what is here now takes to be there."""
        here, since = self._ask_own(self._own.positions), time.monotonic()

        def look() -> str:
            nonlocal here, since
            if gap := _gap(here, target.positions()):
                return gap
            took = time.monotonic() - since
            here, since = self._ask_own(self._own.positions), time.monotonic()
            return "" if took < _NEAR else f"what is committed here takes {took:.1f} s to be there"

        self._until(look, self._patience.catch_up, f"{target.name} has nearly caught up")

    def _wait_for_the_rest(self, target: _Target) -> None:
        here = self._ask_own(self._own.positions)
        self._until(
            lambda: _gap(here, target.positions()), self._patience.rest, f"{target.name} has everything of this node"
        )

    def _hand_off(self, target: _Target) -> None:
        node_id = target.info().node_id
        self._check_wanted()
        self._say(f"hands the lease to {target.name}")
        self.is_undecided = True
        try:
            self._own.hand_off(node_id)
        except ClientError as error:
            # Without a status it may have been told all the same.
            if error.status is not None:
                self.is_undecided = False
                raise SupervisorError(
                    f"LiteFS does not hand over to {target.name}. {error} {self._unchanged}"
                ) from error

    def _wait_until_left(self, target: _Target) -> None:
        deadline = time.monotonic() + self._patience.leave
        while (is_primary := _is_primary(self._own)) is not False:
            if time.monotonic() > deadline:
                this = self._node.name
                known = f"{this} is still the primary" if is_primary else f"LiteFS of {this} does not answer: unknown"
                raise SupervisorError(
                    f"The handoff to {target.name} has not come true within {self._patience.leave:g} s; {known}. "
                    "`manage.py litefs_status` shows what is."
                )
            time.sleep(_PAUSE)
        self.is_undecided = False

    def _wait_until_arrived(self, target: _Target) -> None:
        deadline = time.monotonic() + self._patience.arrive
        while not (is_primary := _is_primary(target.client)):
            if time.monotonic() > deadline:
                said = "does not answer" if is_primary is None else "says that it is not"
                raise SupervisorError(
                    f"{self._node.name} has handed over and is not the primary any more. Whether {target.name} is, is "
                    f"unknown: it {said}. If it fails now, another node takes over when its lease has expired; "
                    "`manage.py litefs_status` shows what is."
                )
            time.sleep(_PAUSE)

    def _until(self, look: Callable[[], str], timeout: float, what: str) -> None:
        """Waits until `look` finds nothing more that is missing; says each second what is."""
        deadline, next_sentence = time.monotonic() + timeout, time.monotonic() + _BETWEEN_SENTENCES
        while missing := look():
            self._check_wanted()
            now = time.monotonic()
            if now > deadline:
                raise SupervisorError(f"Not within {timeout:g} s: {what}; {missing}. {self._unchanged}")
            if now >= next_sentence:
                next_sentence = now + _BETWEEN_SENTENCES
                self._say(f"waits until {what}: {missing}")
            time.sleep(_PAUSE)

    def _check_wanted(self) -> None:
        if not self._is_wanted():
            raise SupervisorError(f"Given up: this node stops. {self._unchanged}")

    def _ask_own(self, question: Callable[[], _T]) -> _T:
        try:
            return question()
        except ClientError as error:
            raise SupervisorError(f"LiteFS on this node does not answer, and nothing was done. {error}") from error


class _Target:
    """The node that is to become the primary. Raises SupervisorError when it does not answer."""

    def __init__(self, name: str, client: LiteFSClient, unchanged: str) -> None:
        self.name = name
        self.client = client
        self._unchanged = unchanged

    def info(self) -> Info:
        return self._ask(self.client.info)

    def positions(self) -> dict[str, Position]:
        return self._ask(self.client.positions)

    def check(self, info: Info, cluster_id: str | None) -> None:
        """Raises SupervisorError for what waiting does not mend."""
        if info.cluster_id not in (None, cluster_id):
            problem = f"is of another cluster ({info.cluster_id}, and this one is {cluster_id})"
        elif info.is_primary:
            problem = "says that it is the primary too: two primaries, look at `manage.py litefs_status`"
        elif not info.candidate:
            problem = 'can never be primary: its LITEFS["LITEFS_YML"] has "lease": {"candidate": False}'
        else:
            return
        raise SupervisorError(f"{self.name} {problem}. {self._unchanged}")

    def _ask(self, question: Callable[[], _T]) -> _T:
        try:
            return question()
        except ClientError as error:
            raise SupervisorError(f"{error} {self._unchanged}") from error


def _is_primary(client: LiteFSClient) -> bool | None:
    """None when it does not answer."""
    try:
        return client.info().is_primary
    except ClientError:
        return None


def _gap(here: Mapping[str, Position], there: Mapping[str, Position]) -> str:
    """What is missing there; "" when nothing is."""
    gaps = []
    for name, position in sorted(here.items()):
        found = there.get(name)
        if found is None:
            gaps.append(f"{name} has not arrived")
        elif found.txid < position.txid:
            gaps.append(f"{name} is {position.txid - found.txid} transactions behind")
        elif found.txid == position.txid and found != position:
            gaps.append(f"{name} is not a copy of this node's")
    return ", ".join(gaps)
