"""Whether another node has everything that this one has committed, asked of its LiteFS."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from litefs_django._litefs.errors import ClientError
from litefs_django._litefs.mount import Position
from litefs_django._litefs.reach import Reach

_PAUSE = 0.01


def wait_until_one_has(positions: Mapping[str, Position], nodes: Reach, names: Sequence[str], timeout: float) -> bool:
    """Whether one of these nodes has come to these positions, by database, within `timeout` seconds.

    All are asked at once; a node that does not answer is not
    asked again.
    """
    deadline = time.monotonic() + timeout
    has_all = threading.Event()

    def follow(name: str) -> None:
        with suppress(ClientError):
            while not has_all.is_set() and (left := deadline - time.monotonic()) > 0:
                if positions.items() <= nodes.client(name, left).positions().items():
                    has_all.set()
                time.sleep(_PAUSE)

    threads = [threading.Thread(target=follow, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not has_all.is_set() and time.monotonic() < deadline:
            has_all.wait(_PAUSE)
    return has_all.is_set()
