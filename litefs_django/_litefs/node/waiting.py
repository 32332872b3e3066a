"""What a replica that is not in sync waits for: LiteFS itself says only that it cannot connect."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.reach import Reach

_INTERVAL = 1.0  # seconds between two looks, and for an answer
_NOBODY = "a primary to synchronise with"
_AT_FIRST = 5  # seconds that are counted one by one


class PrimaryWatch:
    """Asks the primary that this node is to follow, in a thread: a machine that is down takes its time.

    `awaited` is what this node waits for, as the last look has it. `follows` names the node that an elected primary
    was last seen to be; None when none is known.
    """

    def __init__(self, node: NodeDescription, follows: Callable[[], str | None]) -> None:
        self.awaited = _NOBODY
        self._node = node
        self._follows = follows
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="litefs-primary-watch", daemon=True).start()

    def stop(self) -> None:
        """Does not wait for the answer that may be under way."""
        self._stopped.set()

    def _run(self) -> None:
        while True:
            name = self._node.primary or self._follows()
            self.awaited = what_keeps(self._node, name) if name else nobody(self._node.reach, self._node.others)
            if self._stopped.wait(_INTERVAL):
                return


def nobody(nodes: Reach, others: Iterable[str]) -> str:
    """That no primary is known, and which nodes do not answer."""
    silent = []
    for other in others:
        try:
            nodes.client(other, _INTERVAL).info()
        except ClientError as error:
            silent.append(f"{other}: {str(error).rstrip('.')}")
    return f"{_NOBODY} ({'; '.join(silent)})" if silent else _NOBODY


def what_keeps(node: NodeDescription, primary: str) -> str:
    """Why a node is not in sync with that one, by what its LiteFS answers."""
    named = f"{primary}, the {'primary' if node.is_elected else 'PRIMARY'}"
    try:
        info = node.reach.client(primary, _INTERVAL).info()
    except KeyError:
        return f'{named}: it is not one of LITEFS["NODES"]'
    except ClientError as error:
        return f"{named}: {str(error).rstrip('.')}"
    if info.is_primary:
        return f"the first synchronisation with {named}"
    return f"{named}: it is a replica itself, of {info.primary or 'nobody'}"


def counted(seconds: float) -> str:
    """How long something is waited for, in seconds: each at first, then tens, so that a log does not fill with it."""
    whole = int(seconds)
    return f"({whole if whole <= _AT_FIRST else max(_AT_FIRST, whole // 10 * 10)} s)"
